// Rows of a table whose blocks lie at hashed places of one array: kernels/shared_table.py is the definition.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "abi.h"

namespace mfalcon {

inline std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

constexpr std::int64_t kPrime = 2038074743;

// From 0 to kPrime - 1, of negative numbers too.
inline std::uint64_t modulo_prime(std::int64_t x) {
  const std::int64_t rest = x % kPrime;
  return static_cast<std::uint64_t>(rest < 0 ? rest + kPrime : rest);
}

// Where block `block` of a key's row begins; `key` is what key_of made of it.
inline std::uint64_t block_start(const MfSharedTable& table, std::uint64_t key, std::uint64_t block) {
  const auto span = static_cast<std::uint64_t>(table.span);
  if (table.mixes) {
    const std::uint64_t hash = mixed(key + block * 0xBF58476D1CE4E5B9ull);
    return ((hash >> 32) * span + ((hash & 0xFFFFFFFFull) * span >> 32)) >> 32;
  }
  return (key + block * 1825252241ull) % kPrime % span;
}
inline std::uint64_t key_of(const MfSharedTable& table, std::int64_t key) {
  const auto bits = static_cast<std::uint64_t>(key) + static_cast<std::uint64_t>(table.offset);
  if (table.mixes) return bits * 0x9E3779B97F4A7C15ull + 1024;
  return (modulo_prime(key) + modulo_prime(table.offset)) % kPrime * 871205356ull + 634329019ull;
}

// See mf_shared_rows. What a few rows need is on its way from memory before the first of them is copied.
inline void shared_rows(const MfSharedTable& table, const std::int64_t* keys, std::int64_t num_keys, char* out) {
  constexpr std::int64_t kAhead = 16;
  const std::int64_t num_blocks = (table.dim + table.block - 1) / table.block;
  const std::int64_t block_bytes = table.block * table.element_bytes, row_bytes = table.dim * table.element_bytes;
  const auto* const memory = static_cast<const char*>(table.memory);
  std::vector<const char*> blocks(kAhead * num_blocks);
  for (std::int64_t first = 0; first < num_keys; first += kAhead) {
    const std::int64_t count = std::min(kAhead, num_keys - first);
    const char** next = blocks.data();
    for (std::int64_t i = 0; i < count; i++) {
      const std::uint64_t key = key_of(table, keys[first + i]);
      for (std::int64_t block = 0; block < num_blocks; block++) {
        *next = memory + block_start(table, key, static_cast<std::uint64_t>(block)) * table.element_bytes;
        __builtin_prefetch(*next);
        __builtin_prefetch(*next++ + block_bytes - 1);
      }
    }
    next = blocks.data();
    for (std::int64_t i = 0; i < count; i++, out += row_bytes) {
      for (std::int64_t at = 0; at < row_bytes; at += block_bytes) {
        std::memcpy(out + at, *next++, static_cast<std::size_t>(std::min(block_bytes, row_bytes - at)));
      }
    }
  }
}

}  // namespace mfalcon
