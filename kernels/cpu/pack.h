// From plain weights and plain keys and values to the packed ones, and back.
#pragma once
#include <utility>

#include "bias.h"
#include "stack.h"

namespace mfalcon {

template <class P>
inline typename P::Element to_element(float x) {
  typename P::Element lanes[P::kLanes];
  P::store_elements(lanes, P::set(x));
  return lanes[0];
}

template <class P>
inline float from_element(typename P::Element x) {
  typename P::Element elements[P::kLanes] = {x};
  float lanes[P::kLanes];
  P::store(lanes, P::load_elements(elements));
  return lanes[0];
}

// A padded column's place in an unpadded row of heads, -1 on padding.
inline Index plain_column(Index column, Index padded, Index dim) {
  return column % padded < dim ? column / padded * dim + column % padded : -1;
}

// Where a column of [u | q | v | k] stands among the rows u, v, q, k of the plain weight, -1 on padding.
inline Index plain_projection(const Shape& s, Index column) {
  const Index v_width = s.heads * s.v_dim, qk_width = s.heads * s.qk_dim;
  const auto within = [](Index first, Index at) { return at < 0 ? -1 : first + at; };
  if (column < s.q0) return plain_column(column, s.padded_v, s.v_dim);
  if (column < s.v0) return within(2 * v_width, plain_column(column - s.q0, s.padded_qk, s.qk_dim));
  if (column < s.k0) return within(v_width, plain_column(column - s.v0, s.padded_v, s.v_dim));
  return within(2 * v_width + qk_width, plain_column(column - s.k0, s.padded_qk, s.qk_dim));
}

// Packs element(row, column), both padded; the function answers 0 on padding.
template <class P, class At>
Buffer<typename P::Element> packed(Index depth, Index columns, At element) {
  auto out = Buffer<typename P::Element>::zeros(depth * columns);
  for (Index column = 0; column < columns; column++) {
    for (Index row = 0; row < depth; row++) {
      out.get()[panel_offset<P>(depth, columns, row, column)] = to_element<P>(element(row, column));
    }
  }
  return out;
}

template <class At>
Buffer<float> padded_row(Index columns, At element) {
  Buffer<float> out(columns);
  for (Index i = 0; i < columns; i++) out.get()[i] = element(i);
  return out;
}

// place(column): its plain column, -1 on padding. Null weights are those of a norm without any.
template <class Place>
Norm packed_norm(Index columns, Index count, const float* weight, const float* bias, Place place) {
  const auto row = [&](const float* from, float without) {
    return padded_row(columns, [&](Index i) { return place(i) < 0 ? 0.0f : from ? from[place(i)] : without; });
  };
  return {row(nullptr, 1.0f), row(weight, 1.0f), row(bias, 0.0f), columns, static_cast<float>(count)};
}

template <class P>
Layer<P> packed_layer(const Shape& s, const MfLayer& w) {
  const Index v_width = s.heads * s.v_dim;
  const auto of_dim = [&](Index i) { return i < s.dim ? i : -1; };
  const auto of_heads = [&](Index i) { return plain_column(i, s.padded_v, s.v_dim); };
  const auto uvqk = [&](Index row, Index column) {
    const Index plain = plain_projection(s, column);
    return plain < 0 || row >= s.dim ? 0.0f : w.uvqk_weight[plain * s.dim + row];
  };
  const auto output = [&](Index row, Index column) {
    const Index part = row / s.v_width(), plain = of_heads(row % s.v_width());
    const Index out_width = (s.concat ? 3 : 1) * v_width;
    return plain < 0 || column >= s.dim ? 0.0f : w.output_weight[column * out_width + part * v_width + plain];
  };
  return {
      packed_norm(s.padded_dim, s.dim, w.norm_in_weight, w.norm_in_bias, of_dim),
      packed_norm(s.v_width(), v_width, w.norm_out_weight, w.norm_out_bias, of_heads),
      packed<P>(s.padded_dim, s.columns, uvqk),
      packed<P>(s.out_depth, s.padded_dim, output),
      padded_row(s.columns,
                 [&](Index i) {
                   const Index plain = plain_projection(s, i);
                   return plain < 0 || !w.uvqk_bias ? 0.0f : w.uvqk_bias[plain];
                 }),
      padded_row(s.padded_dim, [&](Index i) { return i < s.dim && w.output_bias ? w.output_bias[i] : 0.0f; }),
      packed_bias<P>(s, w),
  };
}

template <class P>
Stack<P>::Stack(const MfConfig& config, const MfLayer* weights, const std::int64_t* bounds)
    : shape(config, P::kLanes), thresholds(bounds, bounds + config.num_buckets) {
  layers.reserve(config.num_layers);
  for (Index i = 0; i < config.num_layers; i++) layers.push_back(packed_layer<P>(shape, weights[i]));
}

template <class P>
void import_plain(const Shape& s, const LayerCache<P>& cache, const float* k, const float* v, Index tokens) {
  std::vector<typename P::Element> row(std::max(s.padded_qk, s.padded_v));
  const auto padded = [&](const float* from, Index dim) {
    std::fill(row.begin(), row.end(), typename P::Element{});
    for (Index i = 0; i < dim; i++) row[i] = to_element<P>(from[i]);
    return row.data();
  };
  for (Index head = 0; head < s.heads; head++) {
    for (Index t = 0; t < tokens; t++) {
      cache.put_key(head, t, 0, s.padded_qk, padded(k + (head * tokens + t) * s.qk_dim, s.qk_dim));
      cache.put_value(head, t, 0, s.padded_v, padded(v + (head * tokens + t) * s.v_dim, s.v_dim));
    }
  }
}

template <class P>
void export_plain(const Shape& s, const LayerCache<P>& cache, float* k, float* v, Index tokens) {
  for (Index head = 0; head < s.heads; head++) {
    for (Index t = 0; t < tokens; t++) {
      float* to_k = k + (head * tokens + t) * s.qk_dim;
      float* to_v = v + (head * tokens + t) * s.v_dim;
      for (Index i = 0; i < s.qk_dim; i++) to_k[i] = from_element<P>(*cache.key(head, t, i));
      for (Index i = 0; i < s.v_dim; i++) to_v[i] = from_element<P>(*cache.value(head, t, i));
    }
  }
}

// Both layouts are the same within a panel of keys and within a panel of values, but for the capacity between them.
template <class P>
void copy_tokens(const Shape& s, const LayerCache<P>& from, const LayerCache<P>& to, Index tokens) {
  const Index keys = round_up(tokens, Panels<P>::kPanel), rows = round_up(tokens, P::kStep);
  for (Index head = 0; head < s.heads; head++) {
    std::copy_n(from.keys(head).data, keys * s.padded_qk, to.k + head * to.capacity * s.padded_qk);
    for (Index column = 0; column < s.padded_v; column += Panels<P>::kPanel) {
      const Index width = from.values(head).width(column);
      std::copy_n(from.value(head, 0, column), rows * width, to.value(head, 0, column));
    }
  }
  if constexpr (P::kStep > 1) {  // an older state must not bring along tokens that are not its own
    for (Index t = tokens; t < rows; t++) {
      for (Index head = 0; head < s.heads; head++) {
        for (Index i = 0; i < s.padded_v; i++) *to.value(head, t, i) = 0;
      }
    }
  }
}

}  // namespace mfalcon
