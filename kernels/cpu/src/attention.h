// silu(q.k + bias) v over a state, for the rows of one head; no softmax, so blocks of keys simply add up.
#pragma once
#include "bias.h"
#include "pages.h"
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

// One thread's room: weights of a tile of rows on one block of keys, for a prefix its biases, the block itself where it
// stands in int8, and the last step of values where not all of its tokens are seen.
template <class P>
struct AttentionSpace {
  static constexpr Index kWeightStride = P::kKeyBlock + 32;
  static constexpr Index kBiasStride = P::kKeyBlock + P::kLanes + 16;
  Buffer<typename P::Element> weights, tail;
  Buffer<float> biases;
  BlockSpace<P> block;

  AttentionSpace(const Stack<P>& stack, bool prefix)
      : weights(kTileRows * kWeightStride),
        tail(P::kStep * stack.shape.padded_v),
        biases(prefix ? kTileRows * kBiasStride : 0),
        block(stack.shape, stack.layout.int8) {}
};

// The step of values that token `token` of a block is in, without the tokens after it -> panels of one step.
template <class P>
void copy_step(const KeyBlock<P>& keys, Index columns, Index token, typename P::Element* to) {
  const Piece<P>* piece = keys.values;
  for (; token >= piece->steps * P::kStep; piece++) token -= piece->steps * P::kStep;
  for (Index first = 0; first < columns; first += Panels<P>::kPanel) {
    const Index width = std::min(Panels<P>::kPanel, columns - first);
    const auto* from = piece->data + first * keys.value_depth + (piece->skip + token / P::kStep * P::kStep) * width;
    for (Index i = 0; i < width * P::kStep; i++) *to++ = i % P::kStep <= token % P::kStep ? from[i] : 0;
  }
}

// q: [rows, padded_qk], scaled. vector_bias: one bias for all rows, null for none. o: [rows, padded_v], added to.
template <class P>
void attend(const Shape& s, Index head, const typename P::Element* q, Index q_stride, Index rows,
            const HeadPages<P>& kv, Visible visible, const float* vector_bias, const PrefixBias* prefix_bias, float* o,
            Index o_stride, const AttentionSpace<P>& space) {
  using V = typename P::Vector;
  using Space = AttentionSpace<P>;
  auto* const weights = space.weights.get();
  const Index most = visible.of(rows - 1);
  for (Index block = 0; block < most; block += P::kKeyBlock) {
    const KeyBlock<P> keys = kv.block(block, std::min(most - block, Index{P::kKeyBlock}), space.block);
    for_row_tiles(rows, [&]<int R>(Index row) {
      const Index seen = std::min(visible.of(row + R - 1) - block, Index{P::kKeyBlock});  // by the tile's last row
      if (seen <= 0) return;
      const Index columns = round_up(seen, P::kLanes);
      const float* bias = vector_bias ? vector_bias + block : nullptr;
      if (prefix_bias) {
        bias = space.biases.get();
        for (int r = 0; r < R; r++) {
          bias_row<P>(*prefix_bias->weights, s, head, prefix_bias->query + row + r,
                      prefix_bias->runs + prefix_bias->first_run[row + r], block, block + columns,
                      space.biases.get() + r * Space::kBiasStride);
        }
      }
      const Index bias_stride = prefix_bias ? Space::kBiasStride : 0;
      const Index all_see = visible.of(row) - block;  // keys before this one no row masks
      Index first = 0;
      for (const Panels<P>* piece = keys.keys; first < columns; first += piece++->columns) {
        product<P, R>(
            q + row * q_stride, q_stride, *piece, 0, std::min(piece->columns, columns - first),
            [&](int r, Index c) { return bias ? P::load(bias + r * bias_stride + first + c) : P::zero(); },
            [&](int r, Index c, V x) {
              x = silu<P>(x);
              c += first;
              if (c + P::kLanes > all_see) x = P::keep_first(x, visible.of(row + r) - block - c);
              P::store_elements(weights + r * Space::kWeightStride + c, x);
            });
      }
      const auto sum = [&](int r, Index c) { return P::load(o + (row + r) * o_stride + c); };
      const auto keep_sum = [&](int r, Index c, V x) { P::store(o + (row + r) * o_stride + c, x); };
      const Index whole = seen / P::kStep;  // steps
      product<P, R>(weights, Space::kWeightStride, keys.values, keys.value_depth, s.padded_v, 0, s.padded_v, whole, sum,
                    keep_sum);
      if (whole * P::kStep < seen) {  // memory of unseen tokens may hold NaN, and 0 * NaN is not 0
        copy_step(keys, s.padded_v, seen - 1, space.tail.get());
        product<P, R>(weights + whole * P::kStep, Space::kWeightStride,
                      Panels<P>{space.tail.get(), P::kStep, s.padded_v}, 0, s.padded_v, sum, keep_sum);
      }
    });
  }
}

}  // namespace mfalcon
