// The C interface that kernels/cpu/library.py loads: fixed layouts, no exceptions. Increase MFALCON_ABI when it changes.
#pragma once
#include <cstdint>

#define MFALCON_ABI 8

extern "C" {

enum MfResult : std::int32_t { MF_OK = 0, MF_OUT_OF_MEMORY = 1, MF_NOT_FLOAT32 = 2, MF_OUT_OF_RANGE = 3 };

// What every layer shares. Sizes are positive; num_positions is 0 for stacks without relative bias; page_tokens is
// MfGeometry.small_page or a multiple of MfGeometry.page_step.
struct MfConfig {
  std::int64_t num_layers, num_heads, dim, qk_dim, v_dim, num_positions, num_buckets;
  std::int64_t page_tokens;
  std::int64_t int8;          // K and V of pages in int8, not in the policy's elements
  std::int64_t activate_all;  // SiLU on v, q and k, not on u alone
  std::int64_t concat;        // output([u, av, u * LN(av)]), not output(u * LN(av))
  std::int64_t softmax;       // weights are a softmax over all that a token sees, not SiLU of each logit
  double attention_norm, logit_scale, norm_eps;
  double rotary_base;         // of rotary positions, 0 without; qk_dim is even with them
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
  // What its tokens see of a prefix: a token of the prefix itself and reach_tokens before it, a target the newest
  // reach_targets; both also those before position reach_first. Negative reach_tokens: all see all, as far as causal.
  std::int64_t reach_tokens, reach_targets, reach_first;
};

struct MfGeometry {
  std::int64_t abi, element_bytes, page_step, small_page;
};

// Memory of a KV state: the addresses of its pages, in the order of tokens, each of mf_page_bytes bytes and aligned to
// 64. A page is [int64 times[page_tokens] | per layer, per head: K, V, and in int8 float32 scales of K and of V
// [page_tokens]]; K and V are in the policy's order. Bytes of tokens that are not the state's may hold anything.
typedef void* const* MfPages;

void mf_geometry(MfGeometry* geometry);
std::int32_t mf_stack_new(const MfConfig* config, const MfLayer* layers, const std::int64_t* thresholds, void** stack);
// The same stack over pages of another size: it shares the weights, which live as long as the last of both.
std::int32_t mf_stack_on_pages(const void* stack, std::int64_t page_tokens, void** other);
void mf_stack_free(void* stack);
std::int64_t mf_page_bytes(const void* stack);

// Hidden targets x [num_targets, dim] after all layers, given the num_tokens of a state -> out, same shape.
std::int32_t mf_score(const void* stack, MfPages pages, std::int64_t num_tokens, std::int64_t time, const float* x,
                      float* out, std::int64_t num_targets, std::int64_t microbatch, std::int64_t threads);

// Tokens x [num_new, dim] enter behind the first num_tokens of a state. Their times stand in the pages already;
// query_times [num_new] are those that their own bias reads, null for their times.
std::int32_t mf_extend(const void* stack, MfPages pages, std::int64_t num_tokens, const std::int64_t* query_times,
                       const float* x, std::int64_t num_new, std::int64_t threads);

// One layer's plain keys [heads, num_tokens, qk_dim], turned by their positions if they are, and values [heads, num_tokens, v_dim] of the tokens from `first`
// on, into or out of pages.
std::int32_t mf_write(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first, const float* k,
                      const float* v, std::int64_t num_tokens);
void mf_read(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first, float* k, float* v,
             std::int64_t num_tokens);

// The first num_tokens tokens of a state, with their times, as they stand, to pages of the size of another stack on the
// same weights. Bytes of tokens behind them may come along.
std::int32_t mf_copy(const void* stack, MfPages pages, const void* other, MfPages to, std::int64_t num_tokens);

// 1 if all of one layer's keys and values of the tokens from `first` on are finite, else 0. Of codes, their scales.
std::int32_t mf_finite(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first,
                       std::int64_t num_tokens);

// Rows of float32 numbers that lie side by side, each `stride` numbers behind the one before it.
struct MfRows {
  const float* data;
  std::int64_t stride;
};

// A linear layer of its own: weight [columns, depth] and bias [columns] (null: none) are copied. MF_NOT_FLOAT32 where
// the policy's elements are others.
std::int32_t mf_linear_new(const float* weight, const float* bias, std::int64_t depth, std::int64_t columns,
                           void** linear);
void mf_linear_free(void* linear);

// y = x [rows, depth] times the weight, plus the bias (or another one, if given) -> out [rows, columns]: y, max(y, 0)
// if relu, or factor * y + before if factor is given (both [rows, columns]; `before` may be `out`).
std::int32_t mf_linear(const void* linear, const MfRows* x, std::int64_t rows, const float* bias, std::int64_t relu,
                       const MfRows* factor, const MfRows* before, const MfRows* out, std::int64_t threads);

// The end of a model: contiguous float32 weights, copied, but for item_bias and context, which the caller keeps alive.
struct MfReadout {
  std::int64_t dim, hidden, num_tasks;
  std::int64_t num_features, dense_hidden;            // 0: it reads no dense features
  std::int64_t num_codes, num_contexts, num_rows;     // context codes; rows of context and of item_bias
  double norm_eps;
  const float *norm_weight, *norm_bias;               // [dim]
  const float *first_weight, *first_bias;             // [hidden, dim]
  const float *last_weight, *last_bias;               // [num_tasks, hidden]
  const float *dense_first_weight, *dense_first_bias; // [dense_hidden, num_features]
  const float *dense_last_weight, *dense_last_bias;   // [dim, dense_hidden]
  const float* item_bias;                             // [num_rows, num_tasks]
  const float* context;                               // [num_contexts, dim]
  const std::int64_t* first_codes;                    // [num_codes] row of context that code 0 of each is
  const std::int64_t* is_binary;                      // [num_tasks]
  const float* centers;                               // [num_tasks]
};

// codes: num_codes of all targets, or of each at this stride if that is not 0. features: null where none are given.
struct MfTargets {
  const float* hidden;                                // [num_targets, dim]
  const std::int64_t *rows, *codes;
  std::int64_t codes_stride, num_targets;
  const float* features;                              // [num_targets, num_features]
  float* out;                                         // [num_targets, num_tasks]
};

// Scores of hidden targets. MF_NOT_FLOAT32 as above; MF_OUT_OF_RANGE for a row or a code that there is not.
std::int32_t mf_readout_new(const MfReadout* config, void** readout);
void mf_readout_free(void* readout);
std::int32_t mf_readout(const void* readout, const MfTargets* targets, std::int64_t threads);

// A table whose rows share one array of numbers of element_bytes each: blocks of `block` of them at hashed places from 0
// to span - 1. mixes: the hash is robe-mix, not robe-v0. offset: added to each key, modulo 2^64.
struct MfSharedTable {
  const void* memory;
  std::int64_t span, block, dim, element_bytes, offset, mixes;
};

// The rows of keys [num_keys] -> out [num_keys, dim], numbers of element_bytes.
std::int32_t mf_shared_rows(const MfSharedTable* table, const std::int64_t* keys, std::int64_t num_keys, void* out);

}
