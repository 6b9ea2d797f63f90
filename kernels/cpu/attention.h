// silu(q.k + bias) v over a cache, for the rows of one head; no softmax, so blocks of keys simply add up.
#pragma once
#include "bias.h"
#include "rows.h"

namespace mfalcon {

// Keys that a row sees: the first `first_row` for the first row, `step` more for each further one.
struct Visible {
  Index first_row, step;
  Index of(Index row) const { return first_row + step * row; }
};

// Bias of prefix tokens, row by row: runs[row] of the block that starts at position `query`. Null runs: no such bias.
struct PrefixBias {
  const RelativeBias* weights;
  const Run* runs;
  const Index* first_run;
  Index query;
};

// Room for the weights and the biases of one tile of rows on one block of keys.
template <class P>
struct AttentionSpace {
  static constexpr Index kWeightStride = P::kKeyBlock + 32;
  static constexpr Index kWeights = kTileRows * kWeightStride;
  static constexpr Index kBiasStride = P::kKeyBlock + P::kLanes + 16;
  static constexpr Index kBiases = kTileRows * kBiasStride;
  typename P::Element* weights;
  float* biases;
};

// q: [rows, padded_qk], scaled. vector_bias: one bias for all rows, null for none. o: [rows, padded_v], added to.
template <class P>
void attend(const Shape& s, Index head, const typename P::Element* q, Index q_stride, Index rows, Panels<P> keys,
            Panels<P> values, Visible visible, const float* vector_bias, const PrefixBias* prefix_bias, float* o,
            Index o_stride, AttentionSpace<P> space) {
  using V = typename P::Vector;
  using Space = AttentionSpace<P>;
  const Index most = visible.of(rows - 1);
  for (Index block = 0; block < most; block += P::kKeyBlock) {
    for_row_tiles(rows, [&]<int R>(Index row) {
      const Index seen = std::min(visible.of(row + R - 1) - block, Index{P::kKeyBlock});  // by the tile's last row
      if (seen <= 0) return;
      const Index columns = round_up(seen, P::kLanes);
      const float* bias = vector_bias ? vector_bias + block : nullptr;
      if (prefix_bias) {
        bias = space.biases;
        for (int r = 0; r < R; r++) {
          bias_row<P>(*prefix_bias->weights, s, head, prefix_bias->query + row + r,
                      prefix_bias->runs + prefix_bias->first_run[row + r], block, block + columns,
                      space.biases + r * Space::kBiasStride);
        }
      }
      const Index bias_stride = prefix_bias ? Space::kBiasStride : 0;
      const Index all_see = visible.of(row) - block;  // keys before this one no row masks
      product<P, R>(
          q + row * q_stride, q_stride, Panels<P>{keys.data + block * keys.depth, keys.depth, keys.columns - block}, 0,
          columns, 0, keys.depth / P::kStep,
          [&](int r, Index c) { return bias ? P::load(bias + r * bias_stride + c) : P::zero(); },
          [&](int r, Index c, V x) {
            x = silu<P>(x);
            if (c + P::kLanes > all_see) x = P::keep_first(x, visible.of(row + r) - block - c);
            P::store_elements(space.weights + r * Space::kWeightStride + c, x);
          });
      product<P, R>(
          space.weights, Space::kWeightStride, values, 0, values.columns, block, (seen + P::kStep - 1) / P::kStep,
          [&](int r, Index c) { return P::load(o + (row + r) * o_stride + c); },
          [&](int r, Index c, V x) { P::store(o + (row + r) * o_stride + c, x); });
    });
  }
}

}  // namespace mfalcon
