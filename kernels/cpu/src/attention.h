// Attention over a state, for the rows of one head, a block of keys at a time: silu(q.k + bias) v, which simply adds up, or
// softmax(q.k + bias) v (softmax.h).
#pragma once
#include "bias.h"
#include "pages.h"
#include "rows.h"
#include "softmax.h"

namespace mfalcon {

// Keys that a row sees: those before `first_row` for the first row, `step` more for each further one, and none from `end`
// on; of these the last `back`, and those before `head`.
struct Visible {
  Index first_row, step, back = Reach::kAll, head = 0, end = Reach::kAll;
  Index of(Index row) const { return std::min(first_row + step * row, end); }
  // Behind the head: the first key that it sees.
  Index from(Index row) const { return std::max(of(row) - back, head); }
};

// Bias of prefix tokens, row by row: runs[row] of the block that starts at position `query`. Null runs: no such bias.
struct PrefixBias {
  const RelativeBias* weights;
  const Run* runs;
  const Index* first_run;
  Index query;
};

// Biases of a row on the keys of one step of pages; whole vectors from any key on run over.
template <class P>
constexpr Index kBiasStride = kPageStep + P::kLanes + 16;

// What the rows of one tile read of the bias, key by key from `block` on.
template <class P, int R>
class TileBias {
 public:
  TileBias(const Shape& s, Index head, const PrefixBias* bias, Index row, Index block)
      : s_(s), head_(head), weights_(bias ? bias->weights : nullptr), query_(bias ? bias->query + row : 0) {
    if (!bias) return;
    far_ = weights_->position.get() + head * weights_->position_stride;
    time_ = weights_->time.get() + head * (s.num_buckets + 1);
    near_ = near_offset<P>(s, query_);
    for (int r = 0; r < R; r++) run_[r] = run_at(bias->runs + bias->first_run[row + r], block);
  }

  // Whether each row has one bucket for all keys [key, key + count). No key before an earlier call's.
  bool one_bucket(Index key, Index count) {
    bool one = true;
    for (int r = 0; r < R; r++) {
      run_[r] = run_at(run_[r], key);
      one &= run_[r]->stop >= key + count;
      of_time_[r] = time_[run_[r]->bucket];
    }
    return one;
  }
  // Then: of row r on keys from `key` on.
  [[gnu::always_inline]] auto of(int r, Index key) const {
    return P::add(P::load(far_ + std::max(near_ - r + key, Index{0})), P::set(of_time_[r]));
  }
  // Else: of all rows, kBiasStride apart.
  void write(Index key, Index count, float* out) const {
    for (int r = 0; r < R; r++) {
      bias_row<P>(*weights_, s_, head_, query_ + r, run_[r], key, key + count, out + r * kBiasStride<P>);
    }
  }

 private:
  const Shape& s_;
  Index head_;
  const RelativeBias* weights_;
  Index query_, near_;
  const float *far_, *time_;
  const Run* run_[R];
  float of_time_[R];
};

// One thread's room: weights of a tile of rows on one block of keys, for a prefix biases of a step of them, the block
// itself where it stands in int8, and the last step of values where not all of its tokens are seen.
template <class P>
struct AttentionSpace {
  static constexpr Index kWeightStride = P::kKeyBlock + 32;
  Buffer<typename P::Element> weights, tail;
  Buffer<float> logits, biases;
  BlockSpace<P> block;

  AttentionSpace(const Stack<P>& stack, bool prefix)
      : weights(kTileRows * kWeightStride),
        tail(P::kStep * stack.shape.padded_v),
        logits(stack.shape.softmax ? kTileRows * kWeightStride : 0),
        biases(prefix ? kTileRows * kBiasStride<P> : 0),
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

// How a step of weights is made: of all keys before a row's own end, of those in its reach, or for a softmax.
enum class Form { kAll, kReach, kSoftmax };

// As `attend`. Pointwise no row sees the keys before visible.head. start: a multiple of kPageStep, or of a block for a
// softmax; no row sees a key before it, but for a softmax those before visible.head.
template <class P, Form kForm>
void attend_from(Index start, const Shape& s, Index head, const typename P::Element* q, Index q_stride, Index rows,
                 const HeadPages<P>& kv, Visible visible, const float* vector_bias, const PrefixBias* prefix_bias,
                 Softmax softmax, float* o, Index o_stride, const AttentionSpace<P>& space) {
  using V = typename P::Vector;
  using Space = AttentionSpace<P>;
  auto* const weights = space.weights.get();
  constexpr bool kSoft = kForm == Form::kSoftmax;
  float* const logits = space.logits.get();
  const Index most = visible.of(rows - 1);
  for (Index block = start; block < most; block += P::kKeyBlock) {
    if (kSoft && block >= visible.head && visible.from(0) >= block + P::kKeyBlock) continue;
    const KeyBlock<P> keys = kv.block(block, std::min(most - block, Index{P::kKeyBlock}), space.block);
    for_row_tiles(rows, [&]<int R>(Index row) {
      const Index seen = std::min(visible.of(row + R - 1) - block, Index{P::kKeyBlock});  // by the tile's last row
      const Index hidden = visible.from(row + R - 1) - block;  // keys before this one some row does not see
      if (seen <= 0) return;
      if (visible.from(row) >= block + P::kKeyBlock && !(kSoft && block < visible.head)) return;
      const Index columns = round_up(seen, P::kLanes);
      const Index all_see = visible.of(row) - block;  // keys before this one no row masks
      TileBias<P, R> of_tile(s, head, prefix_bias, row, block);
      Index first = 0;
      for (const Panels<P>* piece = keys.keys; first < columns; first += piece++->columns) {
        const Index width = std::min(piece->columns, columns - first);
        const auto weigh = [&](Index begin, Index end, auto bias) {  // columns of the piece
          product<P, R>(q + row * q_stride, q_stride, *piece, begin, end, bias, [&](int r, Index c, V x) {
            c += first;
            if constexpr (kSoft) {
              P::store(logits + r * Space::kWeightStride + c, x);
            } else {
              x = silu<P>(x);
              if (c + P::kLanes > all_see) x = P::keep_first(x, visible.of(row + r) - block - c);
              if (kForm == Form::kReach && c < hidden) x = P::keep_from(x, visible.from(row + r) - block - c);
              P::store_elements(weights + r * Space::kWeightStride + c, x);
            }
          });
        };
        if (!prefix_bias) {
          const float* bias = vector_bias ? vector_bias + block + first : nullptr;
          weigh(0, width, [&](int, Index c) { return bias ? P::load(bias + c) : P::zero(); });
          continue;
        }
        for (Index begin = 0; begin < width; begin += kPageStep) {
          const Index end = std::min(begin + kPageStep, width), key = block + first + begin;
          if constexpr (R == kTileRows) {
            if (of_tile.one_bucket(key, end - begin)) {
              weigh(begin, end, [&](int r, Index c) { return of_tile.of(r, key + c - begin); });
              continue;
            }
          }
          of_tile.write(key, end - begin, space.biases.get());
          weigh(begin, end, [&](int r, Index c) { return P::load(space.biases.get() + r * kBiasStride<P> + c - begin); });
        }
      }
      for (int r = 0; r < R && kSoft; r++) {
        const Index at = r * Space::kWeightStride;
        const Seen own(visible.head - block, visible.from(row + r) - block, visible.of(row + r) - block, columns);
        soften<P>(logits + at, own, columns, weights + at, softmax.from(row + r), o + (row + r) * o_stride, s.padded_v);
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

// q: [rows, padded_qk], scaled. vector_bias: one bias for all rows, of the keys that they see, null for none. softmax: of
// the rows so far, if the stack has it; else empty. o: [rows, padded_v], added to.
template <class P>
void attend(const Shape& s, Index head, const typename P::Element* q, Index q_stride, Index rows,
            const HeadPages<P>& kv, Visible visible, const float* vector_bias, const PrefixBias* prefix_bias,
            Softmax softmax, float* o, Index o_stride, const AttentionSpace<P>& space) {
  const auto over = [&]<Form kForm>(Index start, Visible part) {
    attend_from<P, kForm>(start, s, head, q, q_stride, rows, kv, part, vector_bias, prefix_bias, softmax, o, o_stride,
                          space);
  };
  if (softmax.largest) {  // always in the same blocks, lest a row's sums depend on the rows beside it
    over.template operator()<Form::kSoftmax>(0, visible);
    for (Index r = 0; r < rows; r++) scale_row<P>(o + r * o_stride, s.padded_v, 1.0f / softmax.total[r]);
    return;
  }
  if (visible.from(rows - 1) == visible.head) {  // all that is before it
    over.template operator()<Form::kAll>(0, {visible.first_row, visible.step});
    return;
  }
  if (visible.head > 0) {
    over.template operator()<Form::kAll>(0, {visible.first_row, visible.step, Reach::kAll, 0, visible.head});
  }
  over.template operator()<Form::kReach>(visible.from(0) / kPageStep * kPageStep, visible);
}

}  // namespace mfalcon
