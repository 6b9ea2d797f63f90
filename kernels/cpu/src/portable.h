// Policies without intrinsics: vectors of four lanes, which every 64-bit processor has. Their tile has the form of
// AVX-512's (four vectors a panel, two elements a step in bfloat16), so any machine can test what that runs.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mfalcon {

template <class ElementType>
struct Portable {
  using Element = ElementType;
  static constexpr bool kHalf = std::is_same_v<Element, std::uint16_t>;  // bfloat16 bits
  static constexpr int kLanes = 4;
  static constexpr int kStep = kHalf ? 2 : 1;
  static constexpr int kPanelVectors = 4;
  static constexpr int kKeyBlock = 64;
  typedef float Vector __attribute__((vector_size(16)));
  typedef std::uint32_t Bits __attribute__((vector_size(16)));
  typedef std::int32_t Lanes __attribute__((vector_size(16)));
  typedef std::uint16_t Halves __attribute__((vector_size(8)));
  struct Operand {
    Vector of[kStep];
  };
  struct Broadcast {
    float of[kStep];
  };

  template <class To>
  static To read(const void* p) {
    To x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static Vector zero() { return Vector{}; }
  static Vector set(float x) { return Vector{x, x, x, x}; }
  static Vector load(const float* p) { return read<Vector>(p); }
  static void store(float* p, Vector x) { std::memcpy(p, &x, sizeof x); }
  static Vector load_elements(const Element* p) {
    if constexpr (kHalf) {
      return std::bit_cast<Vector>(__builtin_convertvector(read<Halves>(p), Bits) << 16);
    } else {
      return load(p);
    }
  }
  static void store_elements(Element* p, Vector x) {
    if constexpr (kHalf) {
      const Bits bits = std::bit_cast<Bits>(x);
      const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest even
      const Halves halves = __builtin_convertvector(x == x ? rounded : (bits >> 16) | 0x40, Halves);
      std::memcpy(p, &halves, sizeof halves);
    } else {
      store(p, x);
    }
  }

  static void store_codes(std::int8_t* p, Vector x) {
    for (int lane = 0; lane < kLanes; lane++) {
      p[lane] = x[lane] == x[lane] ? static_cast<std::int8_t>(std::lrint(x[lane])) : std::int8_t{0};
    }
  }
  static Vector load_codes(const std::int8_t* p) {
    return Vector{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                  static_cast<float>(p[3])};
  }

  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector sub(Vector a, Vector b) { return a - b; }
  static Vector mul(Vector a, Vector b) { return a * b; }
  static Vector div(Vector a, Vector b) { return a / b; }
  static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
  static Vector clamp(Vector x, float low, float high) {
    x = x > set(high) ? set(high) : x;
    return x < set(low) ? set(low) : x;
  }
  static Vector max(Vector a, Vector b) { return b > a ? b : a; }
  static Vector swap_pairs(Vector x) { return Vector{x[1], x[0], x[3], x[2]}; }
  static Vector max_abs(Vector a, Vector b) {
    b = std::bit_cast<Vector>(std::bit_cast<Bits>(b) & 0x7fffffffu);
    return b > a ? b : a;
  }
  static Vector scale(Vector x, Vector bits) {
    return std::bit_cast<Vector>(std::bit_cast<Bits>(x) + (std::bit_cast<Bits>(bits) << 23));
  }
  static Vector keep_first(Vector x, std::int64_t count) {
    const int limit = count < kLanes ? static_cast<int>(count) : kLanes;
    return std::bit_cast<Vector>(std::bit_cast<Lanes>(x) & (Lanes{0, 1, 2, 3} < limit));
  }
  static Vector keep_from(Vector x, std::int64_t first) {
    const int limit = first < kLanes ? static_cast<int>(std::max<std::int64_t>(first, 0)) : kLanes;
    return std::bit_cast<Vector>(std::bit_cast<Lanes>(x) & (Lanes{0, 1, 2, 3} >= limit));
  }
  static float sum(Vector x) { return (x[0] + x[2]) + (x[1] + x[3]); }

  static Operand operand(const Element* p) {
    if constexpr (kHalf) {
      const Bits pairs = read<Bits>(p);  // the first of each pair in the low half
      return {{std::bit_cast<Vector>(pairs << 16), std::bit_cast<Vector>(pairs & 0xffff0000u)}};
    } else {
      return {{load(p)}};
    }
  }
  static Broadcast broadcast(const Element* p) {
    if constexpr (kHalf) {
      const auto number = [](Element x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); };
      return {{number(p[0]), number(p[1])}};
    } else {
      return {{*p}};
    }
  }
  static Vector dot(Vector sum, Broadcast a, Operand b) {
    for (int s = 0; s < kStep; s++) sum = sum + a.of[s] * b.of[s];
    return sum;
  }
};

}  // namespace mfalcon
