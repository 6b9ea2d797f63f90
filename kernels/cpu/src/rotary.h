// Rotary positions: the neighbours 2i and 2i + 1 of a head turn by position * base^(-2i / qk_dim) (kernels/rotary.py is
// the definition). Angles are sums of two, one of every 64th position: few sines are computed, and always the same ones.
#pragma once
#include <cmath>
#include <vector>

#include "product.h"

namespace mfalcon {

// What turns rows of queries or keys: cosines and sines of a padded head, `stride` apart from row to row, each sine with
// the sign that it has in its place. Null: nothing turns.
struct Turns {
  const float *cos, *sin;
  Index stride;

  Turns from(Index row) const { return cos ? Turns{cos + row * stride, sin + row * stride, stride} : *this; }
};

// The cosine and the sine of an angle.
struct Angle {
  double cos, sin;

  explicit Angle(double radians) : cos(std::cos(radians)), sin(std::sin(radians)) {}
  Angle(double c, double s) : cos(c), sin(s) {}
  Angle plus(Angle other) const { return {cos * other.cos - sin * other.sin, sin * other.cos + cos * other.sin}; }
};

// The angles of the positions below kNear, made once.
class Rotary {
 public:
  static constexpr Index kNear = 64;

  // base 0: a stack without rotary positions.
  Rotary(double base, Index qk_dim) : pairs_(base > 0 ? qk_dim / 2 : 0) {
    for (Index i = 0; i < pairs_; i++) speeds_.push_back(std::pow(base, -2.0 * static_cast<double>(i) / qk_dim));
    for (Index position = 0; position < kNear; position++) {
      for (Index i = 0; i < pairs_; i++) near_.emplace_back(static_cast<double>(position) * speeds_[i]);
    }
  }

  bool turns() const { return pairs_ > 0; }

  // Of the positions from `first` on, as many as `cos` and `sin` [rows, padded] have rows. Throws std::bad_alloc.
  void write(Index first, Index rows, Index padded, float* cos, float* sin) const {
    std::vector<Angle> far(pairs_, Angle(1, 0));
    for (Index row = 0; row < rows; row++, cos += padded, sin += padded) {
      const Index position = first + row;
      if (row == 0 || position % kNear == 0) {
        const auto begun = static_cast<double>(position / kNear * kNear);
        for (Index i = 0; i < pairs_; i++) far[i] = Angle(begun * speeds_[i]);
      }
      const Angle* near = near_.data() + position % kNear * pairs_;
      for (Index i = 0; i < pairs_; i++) {
        const Angle angle = far[i].plus(near[i]);
        cos[2 * i] = cos[2 * i + 1] = static_cast<float>(angle.cos);
        sin[2 * i + 1] = static_cast<float>(angle.sin);
        sin[2 * i] = -sin[2 * i + 1];
      }
      for (Index i = 2 * pairs_; i < padded; i++) cos[i] = sin[i] = 0.0f;  // of columns that are zero
    }
  }

 private:
  Index pairs_;
  std::vector<double> speeds_;
  std::vector<Angle> near_;  // [kNear, pairs]
};

// Lanes from column `column` on of padded heads, of one row.
template <class P>
[[gnu::always_inline]] inline typename P::Vector turned(typename P::Vector x, const Turns& turns, Index row,
                                                        Index column, Index padded) {
  const Index at = row * turns.stride + static_cast<std::uint32_t>(column) % static_cast<std::uint32_t>(padded);
  return P::fma(x, P::load(turns.cos + at), P::mul(P::swap_pairs(x), P::load(turns.sin + at)));
}

}  // namespace mfalcon
