// What a layer does to rows between the products: LayerNorm, activation, gate.
#pragma once
#include <cmath>

#include "silu.h"
#include "stack.h"

namespace mfalcon {

// Rows are this far apart: not a power of two, whose rows would share few sets of the first cache.
inline Index row_stride(Index columns) { return columns + 32; }

// out(column, vector) over LayerNorm of a padded row.
template <class P, class Out>
[[gnu::always_inline]] inline void normalise(const float* x, const Norm& norm, float eps, Out out) {
  auto sum = P::zero();
  for (Index i = 0; i < norm.columns; i += P::kLanes) sum = P::add(sum, P::load(x + i));
  const auto mean = P::set(P::sum(sum) / norm.count);
  const auto centred = [&](Index i) { return P::mul(P::sub(P::load(x + i), mean), P::load(norm.valid.get() + i)); };
  sum = P::zero();
  for (Index i = 0; i < norm.columns; i += P::kLanes) sum = P::fma(centred(i), centred(i), sum);
  const auto scale = P::set(1.0f / std::sqrt(P::sum(sum) / norm.count + eps));
  for (Index i = 0; i < norm.columns; i += P::kLanes) {
    out(i, P::fma(P::mul(centred(i), scale), P::load(norm.weight.get() + i), P::load(norm.bias.get() + i)));
  }
}

// x [rows, padded_dim] through the layer's first norm -> a.
template <class P>
inline void norm_in(const Shape& s, const Layer<P>& layer, const float* x, Index rows, typename P::Element* a,
                    Index a_stride) {
  for (Index r = 0; r < rows; r++) {
    normalise<P>(x + r * s.padded_dim, layer.norm_in, s.norm_eps,
                 [&](Index i, typename P::Vector y) { P::store_elements(a + r * a_stride + i, y); });
  }
}

// Columns [first, last) of the projections [u | q | v | k] of normed rows, activated, q scaled, q and k turned.
template <class P>
inline void project(const Stack<P>& stack, Index layer, const typename P::Element* a, Index a_stride, Index rows,
                    Index first, Index last, const Turns& turns, typename P::Element* h, Index h_stride) {
  const Shape& s = stack.shape;
  const float* bias = stack.layers[layer].uvqk_bias.get();
  const auto logit_scale = P::set(s.logit_scale);
  linear<P>(
      a, a_stride, rows, stack.uvqk(layer), first, last, [&](Index c) { return P::load(bias + c); },
      [&](Index r, Index c, typename P::Vector x) {
        if (s.activate_all || c < s.q0) x = silu<P>(x);
        if (c >= s.q0 && c < s.v0) x = P::mul(x, logit_scale);
        if (turns.cos && c >= s.q0 && (c < s.v0 || c >= s.k0)) {
          x = turned<P>(x, turns, r, c < s.v0 ? c - s.q0 : c - s.k0, s.padded_qk);
        }
        P::store_elements(h + r * h_stride + c, x);
      });
}

// Sums over keys o [rows, v_width] and u -> the rows of the output projection. attended: room for a row.
template <class P>
inline void gate(const Shape& s, const Layer<P>& layer, const typename P::Element* h, Index h_stride, const float* o,
                 Index rows, typename P::Element* a, Index a_stride, float* attended) {
  const Index width = s.v_width();
  const auto scale = P::set(s.attention_scale);
  for (Index r = 0; r < rows; r++) {
    const auto* u = h + r * h_stride;
    auto* row = a + r * a_stride;
    for (Index i = 0; i < width; i += P::kLanes) {
      const auto x = P::mul(P::load(o + r * width + i), scale);
      P::store(attended + i, x);
      if (s.concat) {
        P::store_elements(row + i, P::load_elements(u + i));
        P::store_elements(row + width + i, x);
      }
    }
    auto* gated = row + (s.concat ? 2 * width : 0);
    normalise<P>(attended, layer.norm_out, s.norm_eps, [&](Index i, typename P::Vector y) {
      P::store_elements(gated + i, P::mul(y, P::load_elements(u + i)));
    });
  }
}

// Columns [first, last) of x += output(a).
template <class P>
inline void add_output(const Stack<P>& stack, Index layer, const typename P::Element* a, Index a_stride, Index rows,
                       Index first, Index last, float* x) {
  const float* bias = stack.layers[layer].output_bias.get();
  const Index stride = stack.shape.padded_dim;
  linear<P>(
      a, a_stride, rows, stack.output(layer), first, last, [&](Index c) { return P::load(bias + c); },
      [&](Index r, Index c, typename P::Vector y) {
        float* at = x + r * stride + c;
        P::store(at, P::add(y, P::load(at)));
      });
}

}  // namespace mfalcon
