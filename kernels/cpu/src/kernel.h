// The C interface of one policy. Included once by each of the .cpp files, after it has named its `Policy`.
#pragma once
#include <omp.h>

#include "extend.h"
#include "linear.h"
#include "pack.h"
#include "readout.h"
#include "score.h"
#include "shared_table.h"

namespace mfalcon {

template <class Body>
std::int32_t guarded(Body body) {
  try {
    body();
    return MF_OK;
  } catch (const std::bad_alloc&) {
    return MF_OUT_OF_MEMORY;
  }
}

template <class P>
std::int32_t linear_new(const float* weight, const float* bias, Index depth, Index columns, void** linear) {
  if constexpr (kHasLinear<P>) {
    return guarded([&] { *linear = new Linear<P>(weight, bias, depth, columns); });
  }
  return MF_NOT_FLOAT32;
}

template <class P, class... Given>
std::int32_t linear_apply(const void* linear, const Given&... given) {
  if constexpr (kHasLinear<P>) {
    return guarded([&] { apply(*static_cast<const Linear<P>*>(linear), given...); });
  }
  return MF_NOT_FLOAT32;
}

template <class P>
std::int32_t readout_new(const MfReadout& config, void** readout) {
  if constexpr (kHasLinear<P>) {
    return guarded([&] { *readout = new Readout<P>(config); });
  }
  return MF_NOT_FLOAT32;
}

template <class P>
std::int32_t readout_apply(const void* readout, const MfTargets& targets, Index threads) {
  if constexpr (kHasLinear<P>) {
    const auto& of = *static_cast<const Readout<P>*>(readout);
    if (!of.in_range(targets)) return MF_OUT_OF_RANGE;
    return guarded([&] { read_out(of, targets, threads); });
  }
  return MF_NOT_FLOAT32;
}

inline const Stack<Policy>& stack_of(const void* stack) { return *static_cast<const Stack<Policy>*>(stack); }

}  // namespace mfalcon

extern "C" {

void mf_geometry(MfGeometry* geometry) {
  using mfalcon::Policy;
  *geometry = {MFALCON_ABI, sizeof(Policy::Element), mfalcon::kPageStep, mfalcon::kSmallPage};
}

std::int32_t mf_stack_new(const MfConfig* config, const MfLayer* layers, const std::int64_t* thresholds,
                          void** stack) {
  return mfalcon::guarded([&] { *stack = new mfalcon::Stack<mfalcon::Policy>(*config, layers, thresholds); });
}

std::int32_t mf_stack_on_pages(const void* stack, std::int64_t page_tokens, void** other) {
  return mfalcon::guarded(
      [&] { *other = new mfalcon::Stack<mfalcon::Policy>(mfalcon::stack_of(stack), page_tokens); });
}

void mf_stack_free(void* stack) { delete static_cast<mfalcon::Stack<mfalcon::Policy>*>(stack); }

std::int64_t mf_page_bytes(const void* stack) { return mfalcon::stack_of(stack).layout.bytes; }

std::int32_t mf_score(const void* stack, MfPages pages, std::int64_t num_tokens, std::int64_t time, const float* x,
                      float* out, std::int64_t num_targets, std::int64_t microbatch, std::int64_t threads) {
  return mfalcon::guarded([&] {
    mfalcon::score(mfalcon::stack_of(stack), pages, num_tokens, time, x, out, num_targets, microbatch, threads);
  });
}

std::int32_t mf_extend(const void* stack, MfPages pages, std::int64_t num_tokens, const std::int64_t* query_times,
                       const float* x, std::int64_t num_new, std::int64_t threads) {
  return mfalcon::guarded(
      [&] { mfalcon::extend(mfalcon::stack_of(stack), pages, num_tokens, query_times, x, num_new, threads); });
}

std::int32_t mf_write(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first, const float* k,
                      const float* v, std::int64_t num_tokens) {
  return mfalcon::guarded(
      [&] { mfalcon::write_plain(mfalcon::stack_of(stack), pages, layer, first, k, v, num_tokens); });
}

void mf_read(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first, float* k, float* v,
             std::int64_t num_tokens) {
  mfalcon::read_plain(mfalcon::stack_of(stack), pages, layer, first, k, v, num_tokens);
}

std::int32_t mf_copy(const void* stack, MfPages pages, const void* other, MfPages to, std::int64_t num_tokens) {
  return mfalcon::guarded(
      [&] { mfalcon::copy_tokens(mfalcon::stack_of(stack), pages, mfalcon::stack_of(other), to, num_tokens); });
}

std::int32_t mf_finite(const void* stack, MfPages pages, std::int64_t layer, std::int64_t first,
                       std::int64_t num_tokens) {
  return mfalcon::is_finite(mfalcon::stack_of(stack), pages, layer, first, num_tokens) ? 1 : 0;
}

std::int32_t mf_linear_new(const float* weight, const float* bias, std::int64_t depth, std::int64_t columns,
                           void** linear) {
  return mfalcon::linear_new<mfalcon::Policy>(weight, bias, depth, columns, linear);
}

void mf_linear_free(void* linear) { delete static_cast<mfalcon::Linear<mfalcon::Policy>*>(linear); }

std::int32_t mf_linear(const void* linear, const MfRows* x, std::int64_t rows, const float* bias, std::int64_t relu,
                       const MfRows* factor, const MfRows* before, const MfRows* out, std::int64_t threads) {
  return mfalcon::linear_apply<mfalcon::Policy>(linear, *x, rows, bias, relu, *factor, *before, *out, threads);
}

std::int32_t mf_readout_new(const MfReadout* config, void** readout) {
  return mfalcon::readout_new<mfalcon::Policy>(*config, readout);
}

void mf_readout_free(void* readout) { delete static_cast<mfalcon::Readout<mfalcon::Policy>*>(readout); }

std::int32_t mf_readout(const void* readout, const MfTargets* targets, std::int64_t threads) {
  return mfalcon::readout_apply<mfalcon::Policy>(readout, *targets, threads);
}

std::int32_t mf_shared_rows(const MfSharedTable* table, const std::int64_t* keys, std::int64_t num_keys, void* out) {
  return mfalcon::guarded([&] { mfalcon::shared_rows(*table, keys, num_keys, static_cast<char*>(out)); });
}

}
