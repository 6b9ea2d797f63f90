// Prefill and append: new tokens enter a cache and see all before them and themselves. Rows depend on earlier rows'
// keys and values, so every layer has three steps with a barrier after each. A step is a grid of tasks: blocks of rows,
// and, where these are too few for the threads, parts of the columns.
#pragma once
#include <omp.h>

#include <atomic>

#include "attention.h"

namespace mfalcon {

// How new tokens are cut into blocks of rows, and columns into parts.
struct Grid {
  Index rows, block, blocks, parts;

  Grid(Index num_rows, Index threads) : rows(num_rows) {
    constexpr Index kMost = 96;
    // As many blocks as fill whole rounds of the threads.
    const Index rounds = (rows + threads * kMost - 1) / (threads * kMost);
    block = round_up((rows + threads * rounds - 1) / (threads * rounds), kTileRows);
    blocks = (rows + block - 1) / block;
    parts = (threads + blocks - 1) / blocks;
  }
  Index first(Index i) const { return i * block; }
  Index size(Index i) const { return std::min(block, rows - i * block); }
  // Part i of columns, cut between panels.
  static Index cut(Index columns, Index panel, Index i, Index parts) {
    return std::min(columns, (columns + panel - 1) / panel * i / parts * panel);
  }
};

// What one block of rows reads of the relative bias: the runs of its rows.
struct BlockRuns {
  std::vector<Run> runs;
  std::vector<Index> first;
};

// What the threads share of a layer, and each thread's own.
template <class P>
struct ExtendSpace {
  using Element = typename P::Element;
  Index h_stride, a_stride, a_size;
  Buffer<float> x, o, biases;
  Buffer<Element> h, a, weights;
  std::vector<BlockRuns> runs;

  ExtendSpace(const Shape& s, const Grid& grid, Index threads)
      : h_stride(row_stride(s.columns)),
        a_stride(row_stride(std::max(s.padded_dim, s.out_depth))),
        a_size(round_up(grid.block * a_stride, 64)),
        x(grid.rows * s.padded_dim),
        o(grid.rows * s.v_width()),
        biases(threads * AttentionSpace<P>::kBiases),
        h(grid.rows * h_stride),
        a(threads * a_size),
        weights(threads * AttentionSpace<P>::kWeights),
        runs(s.num_positions ? grid.blocks : 0) {}

  Element* own_a(int thread) const { return a.get() + thread * a_size; }
  AttentionSpace<P> attention(int thread) const {
    return {weights.get() + thread * AttentionSpace<P>::kWeights, biases.get() + thread * AttentionSpace<P>::kBiases};
  }
};

// Columns [first, last) of projected rows that are keys or values, into the cache from token `token` on.
template <class P>
void keep(const Shape& s, const LayerCache<P>& kv, const typename P::Element* h, Index h_stride, Index rows,
          Index token, Index first, Index last) {
  const auto each_head = [&](Index begin, Index width, auto put) {  // of the heads that stand from column `begin` on
    for (Index head = 0; head < s.heads; head++) {
      const Index from = std::max(first, begin + head * width), to = std::min(last, begin + (head + 1) * width);
      if (from >= to) continue;
      for (Index r = 0; r < rows; r++) {
        put(head, token + r, from - begin - head * width, to - begin - head * width, h + r * h_stride + from);
      }
    }
  };
  each_head(s.v0, s.padded_v, [&](auto... run) { kv.put_value(run...); });
  each_head(s.k0, s.padded_qk, [&](auto... run) { kv.put_key(run...); });
}

// The runs of a block's rows. Answers false when memory ends: nothing may be thrown out of a parallel region.
inline bool find_runs(const std::vector<std::int64_t>& thresholds, const std::int64_t* query_times,
                      const std::int64_t* times, Index position, Index rows, BlockRuns& out) {
  try {
    for (Index r = 0; r < rows; r++) {
      out.first.push_back(static_cast<Index>(out.runs.size()));
      append_runs(out.runs, thresholds, query_times[r], times, position + r + 1);
    }
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// Throws std::bad_alloc.
template <class P>
void extend(const Stack<P>& stack, const MfCache& cache, Index tokens, const std::int64_t* query_times, const float* x,
            Index num_new, Index threads) {
  const Shape& s = stack.shape;
  if (num_new == 0) return;
  const Grid grid(num_new, threads);
  const ExtendSpace<P> space(s, grid, threads);
  auto& all_runs = const_cast<std::vector<BlockRuns>&>(space.runs);
  std::atomic<bool> failed = false;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const int thread = omp_get_thread_num();
    auto* a = space.own_a(thread);
#pragma omp for schedule(dynamic, 1)
    for (Index i = 0; i < grid.blocks; i++) {
      const Index first = grid.first(i);
      for (Index r = first; r < first + grid.size(i); r++) {
        float* row = space.x.get() + r * s.padded_dim;
        std::fill(std::copy_n(x + r * s.dim, s.dim, row), row + s.padded_dim, 0.0f);
      }
      if (s.num_positions && s.layers > 1 &&
          !find_runs(stack.thresholds, query_times + first, cache.times, tokens + first, grid.size(i), all_runs[i])) {
        failed = true;
      }
    }
    for (Index layer = 0; layer < s.layers && !failed; layer++) {
      const Layer<P>& weights = stack.layers[layer];
      const LayerCache<P> kv(s, cache, layer);
      const bool last = layer == s.layers - 1;
      const Index from = last ? s.v0 / Panels<P>::kPanel * Panels<P>::kPanel : 0;
#pragma omp for schedule(dynamic, 1)
      for (Index task = 0; task < grid.blocks * grid.parts; task++) {
        const Index i = task / grid.parts, part = task % grid.parts, first = grid.first(i), rows = grid.size(i);
        const Index begin = from + Grid::cut(s.columns - from, Panels<P>::kPanel, part, grid.parts);
        const Index end = from + Grid::cut(s.columns - from, Panels<P>::kPanel, part + 1, grid.parts);
        auto* h = space.h.get() + first * space.h_stride;
        norm_in<P>(s, weights, space.x.get() + first * s.padded_dim, rows, a, space.a_stride);
        project<P>(stack, layer, a, space.a_stride, rows, begin, end, h, space.h_stride);
        keep<P>(s, kv, h, space.h_stride, rows, tokens + first, begin, end);
      }
      if (last) break;
#pragma omp for schedule(dynamic, 1)
      for (Index task = 0; task < grid.blocks * s.heads; task++) {
        const Index i = grid.blocks - 1 - task / s.heads, head = task % s.heads;  // the longest first
        const Index first = grid.first(i), rows = grid.size(i);
        const auto* q = space.h.get() + first * space.h_stride + s.q0 + head * s.padded_qk;
        float* o = space.o.get() + first * s.v_width() + head * s.padded_v;
        for (Index r = 0; r < rows; r++) std::fill_n(o + r * s.v_width(), s.padded_v, 0.0f);
        PrefixBias bias{};
        if (s.num_positions) {
          bias = {&weights.bias, space.runs[i].runs.data(), space.runs[i].first.data(), tokens + first};
        }
        attend<P>(s, head, q, space.h_stride, rows, kv.keys(head), kv.values(head), {tokens + first + 1, 1}, nullptr,
                  s.num_positions ? &bias : nullptr, o, s.v_width(), space.attention(thread));
      }
#pragma omp for schedule(dynamic, 1)
      for (Index i = 0; i < grid.blocks; i++) {
        const Index first = grid.first(i), rows = grid.size(i);
        gate<P>(s, weights, space.h.get() + first * space.h_stride, space.h_stride,
                space.o.get() + first * s.v_width(), rows, a, space.a_stride);
        add_output<P>(stack, layer, a, space.a_stride, rows, 0, s.padded_dim, space.x.get() + first * s.padded_dim);
      }
    }
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace mfalcon
