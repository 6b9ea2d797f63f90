// Prefill and append: new tokens enter a state and see all before them and themselves. Rows depend on earlier rows'
// keys and values, so every layer has three steps with a barrier after each, and one more that quantises in int8. A
// step is a grid of tasks: blocks of rows, and, where these are too few for the threads, parts of the columns.
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

// One thread's own memory.
template <class P>
struct ExtendOwn {
  Buffer<typename P::Element> a;
  Buffer<float> attended, softmax;
  Buffer<std::int8_t> codes;
  AttentionSpace<P> attention;

  ExtendOwn(const Stack<P>& stack, Index rows, Index a_stride)
      : a(rows * a_stride),
        attended(stack.shape.v_width()),
        softmax(stack.shape.softmax ? 2 * rows : 0),
        codes(std::max(stack.shape.padded_qk, stack.shape.padded_v)),
        attention(stack, stack.shape.num_positions > 0) {}
};

// What the threads share of a layer, and each thread's own.
template <class P>
struct ExtendSpace {
  using Element = typename P::Element;
  Index h_stride, a_stride;
  Buffer<float> x, o, cos, sin;
  Buffer<Element> h;
  std::vector<ExtendOwn<P>> own;

  // first: position of the first row.
  ExtendSpace(const Stack<P>& stack, const Grid& grid, Index first, Index threads)
      : ExtendSpace(stack.shape, grid, stack.rotary.turns() ? grid.rows * stack.shape.padded_qk : 0) {
    if (stack.rotary.turns()) stack.rotary.write(first, grid.rows, stack.shape.padded_qk, cos.get(), sin.get());
    own.reserve(threads);
    for (Index i = 0; i < threads; i++) own.emplace_back(stack, grid.block, a_stride);
  }

 private:
  ExtendSpace(const Shape& s, const Grid& grid, Index num_angles)
      : h_stride(row_stride(s.columns)),
        a_stride(row_stride(std::max(s.padded_dim, s.out_depth))),
        x(grid.rows * s.padded_dim),
        o(grid.rows * s.v_width()),
        cos(num_angles),
        sin(num_angles),
        h(grid.rows * h_stride) {}
};

// Columns [first, last) of projected rows that are keys or values, into the pages from token `token` on.
template <class P>
void keep(const Stack<P>& stack, MfPages pages, Index layer, const typename P::Element* h, Index h_stride, Index rows,
          Index token, Index first, Index last) {
  const Shape& s = stack.shape;
  const auto each_head = [&](Index begin, Index width, auto put) {  // of the heads that stand from column `begin` on
    for (Index head = 0; head < s.heads; head++) {
      const Index from = std::max(first, begin + head * width), to = std::min(last, begin + (head + 1) * width);
      if (from >= to) continue;
      const HeadPages<P> kv(stack, pages, layer, head);
      for (Index r = 0; r < rows; r++) {
        put(kv, token + r, from - begin - head * width, to - begin - head * width, h + r * h_stride + from);
      }
    }
  };
  each_head(s.v0, s.padded_v, [](const HeadPages<P>& kv, auto... run) { kv.put_value(run...); });
  each_head(s.k0, s.padded_qk, [](const HeadPages<P>& kv, auto... run) { kv.put_key(run...); });
}

// The runs of a block's rows. ascending: of the times of all keys. Answers false when memory ends: nothing may be thrown
// out of a parallel region.
inline bool find_runs(const std::vector<std::int64_t>& thresholds, const std::int64_t* query_times,
                      const std::int64_t* times, bool ascending, Index position, Index rows, BlockRuns& out) {
  try {
    FollowedRuns followed(thresholds, times);
    const bool can_follow = ascending && FollowedRuns::can_follow(query_times, rows, times, position + rows);
    for (Index r = 0; r < rows; r++) {
      out.first.push_back(static_cast<Index>(out.runs.size()));
      if (can_follow) {
        followed.append(out.runs, query_times[r], position + r + 1);
      } else {
        append_runs(out.runs, thresholds, query_times[r], times, position + r + 1);
      }
    }
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// Throws std::bad_alloc.
template <class P>
void extend(const Stack<P>& stack, MfPages pages, Index tokens, const std::int64_t* query_times, const float* x,
            Index num_new, Index threads) {
  const Shape& s = stack.shape;
  if (num_new == 0) return;
  const Grid grid(num_new, threads);
  const ExtendSpace<P> space(stack, grid, tokens, threads);
  const bool turning = stack.rotary.turns();
  const Turns turns{turning ? space.cos.get() : nullptr, space.sin.get(), s.padded_qk};
  const bool biased = s.num_positions > 0;
  std::vector<BlockRuns> runs(biased ? grid.blocks : 0);
  const auto times = gather_times(stack.layout, pages, biased ? tokens + num_new : 0);
  const bool ascending = std::is_sorted(times.begin(), times.end());
  if (!query_times) query_times = times.data() + (biased ? tokens : 0);
  std::atomic<bool> failed = false;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const ExtendOwn<P>& own = space.own[omp_get_thread_num()];
    auto* a = own.a.get();
#pragma omp for schedule(dynamic, 1)
    for (Index i = 0; i < grid.blocks; i++) {
      const Index first = grid.first(i);
      for (Index r = first; r < first + grid.size(i); r++) {
        float* row = space.x.get() + r * s.padded_dim;
        std::fill(std::copy_n(x + r * s.dim, s.dim, row), row + s.padded_dim, 0.0f);
      }
      if (biased && s.layers > 1 &&
          !find_runs(stack.thresholds, query_times + first, times.data(), ascending, tokens + first, grid.size(i),
                     runs[i])) {
        failed = true;
      }
    }
    for (Index layer = 0; layer < s.layers && !failed; layer++) {
      const Layer<P>& weights = stack.layers[layer];
      const bool last = layer == s.layers - 1;
      const Index from = last ? s.v0 / Panels<P>::kPanel * Panels<P>::kPanel : 0;
#pragma omp for schedule(dynamic, 1)
      for (Index task = 0; task < grid.blocks * grid.parts; task++) {
        const Index i = task / grid.parts, part = task % grid.parts, first = grid.first(i), rows = grid.size(i);
        const Index begin = from + Grid::cut(s.columns - from, Panels<P>::kPanel, part, grid.parts);
        const Index end = from + Grid::cut(s.columns - from, Panels<P>::kPanel, part + 1, grid.parts);
        auto* h = space.h.get() + first * space.h_stride;
        norm_in<P>(s, weights, space.x.get() + first * s.padded_dim, rows, a, space.a_stride);
        project<P>(stack, layer, a, space.a_stride, rows, begin, end, turns.from(first), h, space.h_stride);
        if (!stack.layout.int8) keep<P>(stack, pages, layer, h, space.h_stride, rows, tokens + first, begin, end);
      }
      if (stack.layout.int8) {
#pragma omp for schedule(dynamic, 1)
        for (Index task = 0; task < grid.blocks * s.heads; task++) {
          const Index i = task / s.heads, head = task % s.heads;
          const HeadPages<P> kv(stack, pages, layer, head);
          for (Index r = grid.first(i); r < grid.first(i) + grid.size(i); r++) {
            const auto* row = space.h.get() + r * space.h_stride;
            kv.put(tokens + r, row + s.k0 + head * s.padded_qk, row + s.v0 + head * s.padded_v, own.codes.get());
          }
        }
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
        if (biased) bias = {&weights.bias, runs[i].runs.data(), runs[i].first.data(), tokens + first};
        const Visible visible{tokens + first + 1, 1, weights.reach.tokens + 1, weights.reach.first};
        Softmax softmax{};
        if (s.softmax) {
          softmax = {own.softmax.get(), own.softmax.get() + grid.block};
          softmax.begin(rows);
        }
        attend<P>(s, head, q, space.h_stride, rows, HeadPages<P>(stack, pages, layer, head), visible, nullptr,
                  biased ? &bias : nullptr, softmax, o, s.v_width(), own.attention);
      }
#pragma omp for schedule(dynamic, 1)
      for (Index task = 0; task < grid.blocks * grid.parts; task++) {
        const Index i = task / grid.parts, part = task % grid.parts, first = grid.first(i), rows = grid.size(i);
        const Index begin = Grid::cut(s.padded_dim, Panels<P>::kPanel, part, grid.parts);
        const Index end = Grid::cut(s.padded_dim, Panels<P>::kPanel, part + 1, grid.parts);
        gate<P>(s, weights, space.h.get() + first * space.h_stride, space.h_stride,
                space.o.get() + first * s.v_width(), rows, a, space.a_stride, own.attended.get());
        add_output<P>(stack, layer, a, space.a_stride, rows, begin, end, space.x.get() + first * s.padded_dim);
      }
    }
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace mfalcon
