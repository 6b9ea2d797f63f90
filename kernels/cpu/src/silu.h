// e^-x, silu(x) = x / (1 + e^-x) and sigmoid(x) = 1 / (1 + e^-x), relative error about 2e-7 in float32.
#pragma once

namespace mfalcon {

// e^-x for x between -86 and 86; beyond, as at these.
template <class P>
[[gnu::always_inline]] inline typename P::Vector exp_minus(typename P::Vector x) {
  using V = typename P::Vector;
  constexpr float kMinusLog2E = -1.44269504f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves a rounded integer in the low bits
  const V y = P::clamp(x, -86.0f, 86.0f);
  const V shifted = P::fma(y, P::set(kMinusLog2E), P::set(kRounder));
  const V minus_n = P::sub(P::set(kRounder), shifted);
  const V f = P::fma(y, P::set(kMinusLog2E), minus_n);  // -x * log2(e) = n + f, |f| <= 1/2
  V p = P::set(1.5345810e-4f);                          // 2^f: minimax, relative error 2e-9
  p = P::fma(p, f, P::set(1.3399931e-3f));
  p = P::fma(p, f, P::set(9.6184889e-3f));
  p = P::fma(p, f, P::set(5.5503287e-2f));
  p = P::fma(p, f, P::set(2.4022646e-1f));
  p = P::fma(p, f, P::set(6.9314720e-1f));
  p = P::fma(p, f, P::set(1.0f));
  return P::scale(p, shifted);
}

// The numerator over 1 + e^-x; where x is beyond 86, e^-x is 0 beside 1, or so large that the quotient is 0.
template <class P>
[[gnu::always_inline]] inline typename P::Vector over_sigmoid(typename P::Vector x, typename P::Vector numerator) {
  return P::div(numerator, P::add(exp_minus<P>(x), P::set(1.0f)));
}

template <class P>
[[gnu::always_inline]] inline typename P::Vector silu(typename P::Vector x) {
  return over_sigmoid<P>(x, x);
}

template <class P>
[[gnu::always_inline]] inline typename P::Vector sigmoid(typename P::Vector x) {
  const auto y = P::clamp(x, -86.0f, 86.0f);
  return over_sigmoid<P>(x, P::add(P::sub(y, y), P::set(1.0f)));  // NaN where x is
}

}  // namespace mfalcon
