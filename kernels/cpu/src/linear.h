// One linear layer of float32 rows with its weights packed: what a model without layers of attention is made of.
#pragma once
#include <limits>
#include <type_traits>

#include "stack.h"

namespace mfalcon {

// Of other elements than float32 there is none: rows would have to be rounded first.
template <class P>
constexpr bool kHasLinear = std::is_same_v<typename P::Element, float>;

template <class P>
struct Linear {
  Index depth, columns, padded;
  Buffer<typename P::Element> weight;
  Buffer<float> bias;

  Linear(const float* plain, const float* plain_bias, Index depth, Index columns)
      : depth(depth),
        columns(columns),
        padded(round_up(columns, P::kLanes)),
        weight(Buffer<typename P::Element>::zeros(depth * padded)),
        bias(padded_bias(plain_bias)) {
    for (Index column = 0; column < columns; column++) {
      for (Index row = 0; row < depth; row++) {
        weight.get()[panel_offset<P>(depth, padded, row, column)] = to_element<P>(plain[column * depth + row]);
      }
    }
  }

  // Of `columns` numbers, null for zeros.
  Buffer<float> padded_bias(const float* plain) const {
    auto out = Buffer<float>::zeros(padded);
    if (plain) std::copy_n(plain, columns, out.get());
    return out;
  }
};

// A vector of which `count` lanes are ours, the others' memory is not touched.
template <class P>
[[gnu::always_inline]] inline typename P::Vector load_lanes(const float* from, Index count) {
  if (count >= P::kLanes) return P::load(from);
  float lanes[P::kLanes] = {};
  std::copy_n(from, count, lanes);
  return P::load(lanes);
}
template <class P>
[[gnu::always_inline]] inline void store_lanes(float* to, typename P::Vector x, Index count) {
  if (count >= P::kLanes) return P::store(to, x);
  float lanes[P::kLanes];
  P::store(lanes, x);
  std::copy_n(lanes, count, to);
}

// See mf_linear; throws std::bad_alloc. Every row's sums have one order, whatever stands beside it.
template <class P>
void apply(const Linear<P>& layer, const MfRows& x, Index rows, const float* bias, std::int64_t relu,
           const MfRows& factor, const MfRows& before, const MfRows& out, Index threads) {
  const Buffer<float> given = bias ? layer.padded_bias(bias) : Buffer<float>(0);
  const float* start = bias ? given.get() : layer.bias.get();
  const Panels<P> weight{layer.weight.get(), layer.depth, layer.padded};
  const Index tiles = (rows + kTileRows - 1) / kTileRows;
  const Index parts = std::max<Index>(1, std::min(threads, tiles));
  auto* const to = const_cast<float*>(out.data);
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (Index part = 0; part < parts; part++) {
    const Index first = tiles * part / parts * kTileRows;
    const Index last = std::min(rows, tiles * (part + 1) / parts * kTileRows);
    const auto all = [&](auto finish) {
      linear<P>(
          x.data + first * x.stride, x.stride, last - first, weight, 0, layer.padded,
          [&](Index c) { return P::load(start + c); },
          [&](Index r, Index c, typename P::Vector y) {
            r += first;
            const Index count = layer.columns - c;
            store_lanes<P>(to + r * out.stride + c, finish(r, c, y, count), count);
          });
    };
    if (factor.data) {
      all([&](Index r, Index c, typename P::Vector y, Index count) {
        return P::fma(load_lanes<P>(factor.data + r * factor.stride + c, count), y,
                      load_lanes<P>(before.data + r * before.stride + c, count));
      });
    } else if (relu) {
      all([](Index, Index, typename P::Vector y, Index) {
        return P::clamp(y, 0.0f, std::numeric_limits<float>::infinity());
      });
    } else {
      all([](Index, Index, typename P::Vector y, Index) { return y; });
    }
  }
}

}  // namespace mfalcon
