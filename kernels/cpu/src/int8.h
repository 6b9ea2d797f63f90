// Keys and values in int8: a token's elements of one head are codes of -127 to 127 and one float32 scale.
#pragma once
#include "stack.h"

namespace mfalcon {

// Codes of a padded row; returns their scale: the largest magnitude / 127, NaN if an element is not finite.
template <class P>
inline float quantise(const typename P::Element* from, Index padded, std::int8_t* codes) {
  auto largest = P::zero(), not_finite = P::zero();  // the latter 0 or NaN
  for (Index i = 0; i < padded; i += P::kLanes) {
    const auto x = P::load_elements(from + i);
    largest = P::max_abs(largest, x);
    not_finite = P::fma(x, P::zero(), not_finite);
  }
  float lanes[P::kLanes];
  P::store(lanes, largest);
  const float scale = *std::max_element(lanes, lanes + P::kLanes) / 127.0f + P::sum(not_finite);
  const auto inverse = P::set(scale > 0.0f ? 1.0f / scale : 0.0f);
  for (Index i = 0; i < padded; i += P::kLanes) {
    P::store_codes(codes + i, P::clamp(P::mul(P::load_elements(from + i), inverse), -127.0f, 127.0f));
  }
  return scale;
}

// Panels of keys [depth, tokens], `panel` tokens wide, that begin at `codes` -> tokens from `place` on of panels that
// begin at `to` and are kPanel wide; whole panels of codes, so perhaps more tokens.
template <class P>
inline void dequantise_keys(const std::int8_t* codes, Index panel, const float* scales, Index depth, Index tokens,
                            typename P::Element* to, Index place) {
  constexpr Index kPanel = Panels<P>::kPanel, kWidth = kPanel * P::kStep;
  const Index width = panel * P::kStep;
  for (Index first = 0; first < tokens; first += panel) {
    float of_place[kWidth];
    for (Index i = 0; i < width; i++) of_place[i] = scales[first + i / P::kStep];
    auto* at = to + (place + first) / kPanel * kPanel * depth + (place + first) % kPanel * P::kStep;
    for (Index row = 0; row < depth; row += P::kStep, codes += width, at += kWidth) {
      for (Index i = 0; i < width; i += P::kLanes) {
        P::store_elements(at + i, P::mul(P::load_codes(codes + i), P::load(of_place + i)));
      }
    }
  }
}

// Tokens [skip, skip + tokens) of panels of values [depth, columns] -> tokens from `place` on of panels of another
// depth; whole steps, so perhaps one token more. scales: of the first token.
template <class P>
inline void dequantise_values(const std::int8_t* codes, Index depth, Index skip, const float* scales, Index columns,
                              Index tokens, typename P::Element* to, Index to_depth, Index place) {
  for (Index t = 0; t < tokens; t += P::kStep) {
    float of_place[P::kLanes];
    for (int lane = 0; lane < P::kLanes; lane++) of_place[lane] = scales[t + lane % P::kStep];
    const auto scale = P::load(of_place);
    for (Index first = 0; first < columns; first += Panels<P>::kPanel) {
      const Index width = std::min(Panels<P>::kPanel, columns - first);
      const auto* from = codes + first * depth + (skip + t) * width;
      auto* at = to + first * to_depth + (place + t) * width;
      for (Index i = 0; i < width * P::kStep; i += P::kLanes) {
        P::store_elements(at + i, P::mul(P::load_codes(from + i), scale));
      }
    }
  }
}

}  // namespace mfalcon
