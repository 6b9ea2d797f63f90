// From plain weights to the packed ones.
#pragma once
#include <utility>

#include "bias.h"
#include "stack.h"

namespace mfalcon {

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
      Reach(w),
  };
}

template <class P>
std::shared_ptr<const std::vector<Layer<P>>> packed_layers(const Shape& shape, const MfLayer* weights) {
  std::vector<Layer<P>> layers;
  layers.reserve(shape.layers);
  for (Index i = 0; i < shape.layers; i++) layers.push_back(packed_layer<P>(shape, weights[i]));
  return std::make_shared<const std::vector<Layer<P>>>(std::move(layers));
}

template <class P>
Stack<P>::Stack(const MfConfig& config, const MfLayer* weights, const std::int64_t* bounds)
    : shape(config, P::kLanes),
      layout(shape, config.page_tokens, config.int8 != 0, sizeof(typename P::Element)),
      thresholds(bounds, bounds + config.num_buckets),
      rotary(config.rotary_base, config.qk_dim),
      packed(packed_layers<P>(shape, weights)),
      layers(*packed) {}

}  // namespace mfalcon
