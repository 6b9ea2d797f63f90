// Policy: AVX2 and FMA, everything in float32. Tile 6 x 16: 12 accumulators, 2 operands and 1 broadcast of 16 registers.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace mfalcon {

struct Avx2F32 {
  using Element = float;     // of weights, K, V and every operand of a matrix product
  using Vector = __m256;     // float32 lanes
  using Operand = __m256;    // one vector of elements, kStep per lane
  using Broadcast = __m256;  // kStep elements of one row, in every lane
  static constexpr int kLanes = 8;
  static constexpr int kStep = 1;         // reduction elements that one `dot` takes
  static constexpr int kPanelVectors = 2;  // vectors in a panel of columns
  static constexpr int kKeyBlock = 256;    // keys whose weights are held at once

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector set(float x) { return _mm256_set1_ps(x); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  static Vector load_elements(const Element* p) { return _mm256_loadu_ps(p); }
  static void store_elements(Element* p, Vector x) { _mm256_storeu_ps(p, x); }

  // int8 codes of whole numbers up to 127 in magnitude after rounding to nearest; NaN becomes 0.
  static void store_codes(std::int8_t* p, Vector x) {
    const __m256i codes = _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)));
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
  }
  static Vector load_codes(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm256_div_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  // x between the bounds; NaN stays NaN (min and max return their second argument then).
  static Vector clamp(Vector x, float low, float high) { return _mm256_max_ps(set(low), _mm256_min_ps(set(high), x)); }
  // The larger one; either if one is NaN.
  static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  // Lanes 2i and 2i + 1 change places.
  static Vector swap_pairs(Vector x) { return _mm256_permute_ps(x, 0xb1); }
  // The larger of a and the magnitude of b; either if b is NaN.
  static Vector max_abs(Vector a, Vector b) { return _mm256_max_ps(a, _mm256_andnot_ps(set(-0.0f), b)); }
  // x * 2^n, n in the low 9 bits of each lane of `bits`.
  static Vector scale(Vector x, Vector bits) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n));
  }
  // The first `count` lanes, zero in the others whatever they hold.
  static Vector keep_first(Vector x, std::int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int limit = count < kLanes ? static_cast<int>(count) : kLanes;
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane)));
  }
  // The lanes from `first` on, zero in those before it whatever they hold.
  static Vector keep_from(Vector x, std::int64_t first) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int limit = first < kLanes ? static_cast<int>(std::max<std::int64_t>(first, 0)) : kLanes;
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(limit - 1))));
  }
  static float sum(Vector x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

  static Operand operand(const Element* p) { return _mm256_loadu_ps(p); }
  static Broadcast broadcast(const Element* p) { return _mm256_broadcast_ss(p); }
  static Vector dot(Vector sum, Broadcast a, Operand b) { return _mm256_fmadd_ps(a, b, sum); }
};

}  // namespace mfalcon
