// A softmax of rows whose keys go by in blocks: what was summed so far shrinks when a larger logit comes (Milakov and
// Gimelshein 2018, arXiv 1805.02867), so no logit is too large for e^x.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "silu.h"

namespace mfalcon {

// Of each row so far: its largest logit, and the sum of e^(logit - largest). Null: no softmax.
struct Softmax {
  float *largest, *total;

  Softmax from(Index row) const { return {largest + row, total + row}; }
  // Rows that have seen nothing.
  void begin(Index rows) const {
    std::fill_n(largest, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(total, rows, 0.0f);
  }
};

// Keys of a block that a row sees: those before `head`, and those in [from, stop); all within [0, columns].
struct Seen {
  Index head, from, stop;

  Seen(Index before, Index first, Index end, Index columns)
      : head(std::clamp(before, Index{0}, columns)),
        from(std::clamp(first, head, columns)),
        stop(std::clamp(end, Index{0}, columns)) {}
  bool none() const { return stop == 0 || (head == 0 && from >= stop); }
};

template <class P>
inline void scale_row(float* o, Index width, float by) {
  for (Index i = 0; i < width; i += P::kLanes) P::store(o + i, P::mul(P::load(o + i), P::set(by)));
}

// Logits of one row on a block of keys -> e^(logit - largest), 0 of keys that it does not see; what the row has summed in
// `o` shrinks with its largest logit. No result depends on `columns`, whole vectors that hold what is seen.
template <class P>
inline void soften(float* logits, Seen seen, Index columns, typename P::Element* weights, Softmax row, float* o,
                   Index width) {
  if (seen.none()) {
    std::fill_n(weights, columns, typename P::Element{});
    return;
  }
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::fill(logits + seen.head, logits + seen.from, kNever);
  std::fill(logits + seen.stop, logits + columns, kNever);
  auto most = P::set(*row.largest);
  for (Index c = 0; c < columns; c += P::kLanes) most = P::max(most, P::load(logits + c));
  float lanes[P::kLanes];
  P::store(lanes, most);
  const float largest = *std::max_element(lanes, lanes + P::kLanes);
  if (largest != *row.largest) {
    const float shrink = std::exp(*row.largest - largest);
    *row.total *= shrink;
    scale_row<P>(o, width, shrink);
    *row.largest = largest;
  }
  auto sum = P::zero();
  for (Index c = 0; c < columns; c += P::kLanes) {
    auto weight = exp_minus<P>(P::sub(P::set(largest), P::load(logits + c)));
    if (c + P::kLanes > seen.stop) weight = P::keep_first(weight, seen.stop - c);
    sum = P::add(sum, weight);
    P::store_elements(weights + c, weight);
  }
  std::fill(weights + seen.head, weights + seen.from, typename P::Element{});  // what they added is below 1e-34
  *row.total += P::sum(sum);
}

}  // namespace mfalcon
