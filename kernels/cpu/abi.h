// The C interface that kernels/fused.py calls: fixed layouts, no exceptions. Increase MFALCON_ABI when it changes.
#pragma once
#include <cstdint>

#define MFALCON_ABI 1

extern "C" {

enum MfResult : std::int32_t { MF_OK = 0, MF_OUT_OF_MEMORY = 1 };

// What every layer shares. Sizes are positive; num_positions is 0 for stacks without relative bias.
struct MfConfig {
  std::int64_t num_layers, num_heads, dim, qk_dim, v_dim, num_positions, num_buckets;
  std::int64_t activate_all;  // SiLU on v, q and k, not on u alone
  std::int64_t concat;        // output([u, av, u * LN(av)]), not output(u * LN(av))
  double attention_norm, logit_scale, norm_eps;
};

// Contiguous float32 weights of one layer, copied when packed. Null: the layer has none.
struct MfLayer {
  const float* norm_in_weight;   // [dim]
  const float* norm_in_bias;     // [dim]
  const float* uvqk_weight;      // [2 * heads * (v_dim + qk_dim), dim], rows u, v, q, k
  const float* uvqk_bias;
  const float* norm_out_weight;  // [heads * v_dim]
  const float* norm_out_bias;
  const float* output_weight;    // [dim, (concat ? 3 : 1) * heads * v_dim]
  const float* output_bias;
  const float* position;         // [heads, num_positions]
  const float* time;             // [heads, num_buckets + 1]
};

// Memory of KV states. k: [layers, heads, capacity, padded qk_dim], v: [layers, heads, capacity, padded v_dim], in the
// policy's order within a head; times: [capacity]. Capacity is a multiple of MfGeometry.capacity_step.
struct MfCache {
  void* k;
  void* v;
  std::int64_t* times;
  std::int64_t capacity;
};

struct MfGeometry {
  std::int64_t abi, element_bytes, dim_step, capacity_step;
};

void mf_geometry(MfGeometry* geometry);
std::int32_t mf_stack_new(const MfConfig* config, const MfLayer* layers, const std::int64_t* thresholds, void** stack);
void mf_stack_free(void* stack);

// Hidden targets x [num_targets, dim] after all layers, given the first num_tokens of a cache -> out, same shape.
std::int32_t mf_score(const void* stack, const MfCache* cache, std::int64_t num_tokens, std::int64_t time,
                      const float* x, float* out, std::int64_t num_targets, std::int64_t microbatch,
                      std::int64_t threads);

// Tokens x [num_new, dim] enter a cache behind its first num_tokens. Their times stand in the cache already;
// query_times [num_new] are those that their own bias reads (the same ones in every model that is served).
std::int32_t mf_extend(const void* stack, const MfCache* cache, std::int64_t num_tokens,
                       const std::int64_t* query_times, const float* x, std::int64_t num_new, std::int64_t threads);

// One layer's plain keys [heads, num_tokens, qk_dim] and values [heads, num_tokens, v_dim] into or out of a cache.
std::int32_t mf_import(const void* stack, const MfCache* cache, std::int64_t layer, const float* k, const float* v,
                       std::int64_t num_tokens);
void mf_export(const void* stack, const MfCache* cache, std::int64_t layer, float* k, float* v,
               std::int64_t num_tokens);

// The first num_tokens tokens of one cache into another, of any capacity.
void mf_copy(const void* stack, const MfCache* from, const MfCache* to, std::int64_t num_tokens);

}
