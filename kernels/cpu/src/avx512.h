// Policies: AVX-512, in float32 and in bfloat16 with float32 sums. Tile 6 x 64: 24 accumulators of 32 registers.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace mfalcon {

// What both share: arithmetic on 16 float32 lanes.
struct Avx512 {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kPanelVectors = 4;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector set(float x) { return _mm512_set1_ps(x); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }

  static void store_codes(std::int8_t* p, Vector x) {
    const __m512i codes = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(codes));
  }
  static Vector load_codes(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm512_div_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector clamp(Vector x, float low, float high) { return _mm512_max_ps(set(low), _mm512_min_ps(set(high), x)); }
  static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector swap_pairs(Vector x) { return _mm512_permute_ps(x, 0xb1); }
  static Vector max_abs(Vector a, Vector b) { return _mm512_max_ps(a, _mm512_abs_ps(b)); }
  static Vector scale(Vector x, Vector bits) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n));
  }
  static Vector keep_first(Vector x, std::int64_t count) {
    const __mmask16 mask = count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
    return _mm512_maskz_mov_ps(mask, x);
  }
  static Vector keep_from(Vector x, std::int64_t first) {
    const __mmask16 mask = first >= kLanes ? 0 : first <= 0 ? 0xffff : static_cast<__mmask16>(0xffffu << first);
    return _mm512_maskz_mov_ps(mask, x);
  }
  static float sum(Vector x) { return _mm512_reduce_add_ps(x); }
};

struct Avx512F32 : Avx512 {
  using Element = float;
  using Operand = __m512;
  using Broadcast = __m512;
  static constexpr int kStep = 1;
  static constexpr int kKeyBlock = 256;

  static Vector load_elements(const Element* p) { return _mm512_loadu_ps(p); }
  static void store_elements(Element* p, Vector x) { _mm512_storeu_ps(p, x); }
  static Operand operand(const Element* p) { return _mm512_loadu_ps(p); }
  static Broadcast broadcast(const Element* p) { return _mm512_set1_ps(*p); }
  static Vector dot(Vector sum, Broadcast a, Operand b) { return _mm512_fmadd_ps(a, b, sum); }
};

#ifdef __AVX512BF16__
struct Avx512Bf16 : Avx512 {
  using Element = std::uint16_t;  // bfloat16 bits
  using Operand = __m512i;
  using Broadcast = __m512i;
  static constexpr int kStep = 2;
  static constexpr int kKeyBlock = 512;

  static Vector load_elements(const Element* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static void store_elements(Element* p, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
  }
  static Operand operand(const Element* p) { return _mm512_loadu_si512(p); }
  static Broadcast broadcast(const Element* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Vector dot(Vector sum, Broadcast a, Operand b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

}  // namespace mfalcon
