// Score: targets of one request see the prefix and themselves. Microbatches are independent through all layers, so
// each runs from end to end on one thread: one parallel region, no barrier inside.
#pragma once
#include <omp.h>

#include "attention.h"

namespace mfalcon {

// One thread's memory for a microbatch.
template <class P>
struct ScoreSpace {
  using Element = typename P::Element;
  Index h_stride, a_stride;
  Buffer<float> x, o, attended, largest, total;  // the last two [heads, rows]
  Buffer<Element> h, a;
  AttentionSpace<P> attention;

  ScoreSpace(const Stack<P>& stack, Index rows) : ScoreSpace(stack, stack.shape, rows) {}

 private:
  ScoreSpace(const Stack<P>& stack, const Shape& s, Index rows)
      : h_stride(row_stride(s.columns)),
        a_stride(row_stride(std::max(s.padded_dim, s.out_depth))),
        x(rows * s.padded_dim),
        o(rows * s.v_width()),
        attended(s.v_width()),
        largest(s.softmax ? s.heads * rows : 0),
        total(s.softmax ? s.heads * rows : 0),
        h(rows * h_stride),
        a(rows * a_stride),
        attention(stack, false) {}
};

// rab of the targets, one vector per layer and head: [layers, heads, stride]; and on themselves: [layers, heads].
struct TargetBias {
  Buffer<float> prefix, own;
  Index stride;
};

// What targets behind so many tokens see of a layer.
template <class P>
Visible seen_by_targets(const Layer<P>& layer, Index tokens) {
  return {tokens, 0, layer.reach.targets, layer.reach.first};
}

template <class P>
TargetBias target_bias(const Stack<P>& stack, const std::int64_t* times, Index tokens, std::int64_t time) {
  const Shape& s = stack.shape;
  if (s.num_positions == 0) return {Buffer<float>(0), Buffer<float>::zeros(s.layers * s.heads), 0};
  std::vector<Run> runs;
  append_runs(runs, stack.thresholds, time, times, tokens);
  const Index columns = round_up(tokens, P::kLanes), stride = columns + P::kLanes;
  TargetBias bias{Buffer<float>(s.layers * s.heads * stride), Buffer<float>(s.layers * s.heads), stride};
  for (Index layer = 0; layer < s.layers; layer++) {
    for (Index head = 0; head < s.heads; head++) {
      const Index i = layer * s.heads + head;
      const RelativeBias& weights = stack.layers[layer].bias;
      float* const to = bias.prefix.get() + i * stride;
      const auto fill = [&](Index first, Index last) {
        bias_row<P>(weights, s, head, tokens, runs.data(), first, last, to + first);
      };
      const Visible visible = seen_by_targets(stack.layers[layer], tokens);
      const Index near = visible.from(0) / kPageStep * kPageStep;
      if (near > visible.head) fill(0, round_up(visible.head, P::kLanes));
      fill(near > visible.head ? near : 0, columns);
      bias.own.get()[i] = own_bias<P>(weights, s, head);
    }
  }
  return bias;
}

// The term of each target on itself; sets o, and of a softmax what it begins with.
template <class P>
void attend_self(const Shape& s, const typename P::Element* h, Index h_stride, Index rows, const float* own_bias,
                 float* o, Softmax softmax) {
  for (Index r = 0; r < rows; r++) {
    const auto* row = h + r * h_stride;
    for (Index head = 0; head < s.heads; head++) {
      const auto *q = row + s.q0 + head * s.padded_qk, *k = row + s.k0 + head * s.padded_qk;
      const auto* v = row + s.v0 + head * s.padded_v;
      auto logit = P::zero();
      for (Index i = 0; i < s.padded_qk; i += P::kLanes) {
        logit = P::fma(P::load_elements(q + i), P::load_elements(k + i), logit);
      }
      const float own = P::sum(logit) + own_bias[head];
      const auto weight = s.softmax ? P::set(own * 0.0f + 1.0f) : silu<P>(P::set(own));  // NaN where the logit is
      if (s.softmax) {
        softmax.largest[head * rows + r] = own;
        softmax.total[head * rows + r] = 1.0f;
      }
      float* out = o + r * s.v_width() + head * s.padded_v;
      for (Index i = 0; i < s.padded_v; i += P::kLanes) P::store(out + i, P::mul(weight, P::load_elements(v + i)));
    }
  }
}

// x and out: [rows, dim].
template <class P>
void score_microbatch(const Stack<P>& stack, MfPages pages, Index tokens, const TargetBias& bias, const float* x,
                      float* out, Index rows, const Turns& turns, const ScoreSpace<P>& space) {
  const Shape& s = stack.shape;
  float *hidden = space.x.get(), *o = space.o.get();
  auto *h = space.h.get(), *a = space.a.get();
  const Softmax softmax{space.largest.get(), space.total.get()};
  for (Index r = 0; r < rows; r++) {
    float* row = hidden + r * s.padded_dim;
    std::fill(std::copy_n(x + r * s.dim, s.dim, row), row + s.padded_dim, 0.0f);
  }
  for (Index layer = 0; layer < s.layers; layer++) {
    const Layer<P>& weights = stack.layers[layer];
    norm_in<P>(s, weights, hidden, rows, a, space.a_stride);
    project<P>(stack, layer, a, space.a_stride, rows, 0, s.columns, turns, h, space.h_stride);
    attend_self<P>(s, h, space.h_stride, rows, bias.own.get() + layer * s.heads, o, softmax);
    for (Index head = 0; head < s.heads && tokens > 0; head++) {
      const HeadPages<P> kv(stack, pages, layer, head);
      const float* of_head = s.num_positions ? bias.prefix.get() + (layer * s.heads + head) * bias.stride : nullptr;
      attend<P>(s, head, h + s.q0 + head * s.padded_qk, space.h_stride, rows, kv,
                seen_by_targets(weights, tokens), of_head, nullptr,
                s.softmax ? softmax.from(head * rows) : Softmax{}, o + head * s.padded_v, s.v_width(), space.attention);
    }
    gate<P>(s, weights, h, space.h_stride, o, rows, a, space.a_stride, space.attended.get());
    add_output<P>(stack, layer, a, space.a_stride, rows, 0, s.padded_dim, hidden);
  }
  for (Index r = 0; r < rows; r++) std::copy_n(hidden + r * s.padded_dim, s.dim, out + r * s.dim);
}

template <class P>
void score(const Stack<P>& stack, MfPages pages, Index tokens, std::int64_t time, const float* x, float* out,
           Index targets, Index microbatch, Index threads) {
  const Shape& s = stack.shape;
  if (targets == 0) return;
  // Microbatches in whole tiles, alike to a tile, as many as fill whole rounds of the threads. No row's result depends
  // on where it is cut.
  const Index tiles = (targets + kTileRows - 1) / kTileRows, most = std::max<Index>(1, microbatch / kTileRows);
  const Index count = std::min(tiles, round_up((tiles + most - 1) / most, threads));
  const Index rows = std::min(targets, (tiles + count - 1) / count * kTileRows);
  const int used = static_cast<int>(std::min(threads, count));
  const TargetBias bias = target_bias(stack, gather_times(stack.layout, pages, tokens).data(), tokens, time);
  const Index num_angles = stack.rotary.turns() ? s.padded_qk : 0;
  const Buffer<float> cos(num_angles), sin(num_angles);
  if (num_angles) stack.rotary.write(tokens, 1, s.padded_qk, cos.get(), sin.get());
  const Turns turns{num_angles ? cos.get() : nullptr, sin.get(), 0};  // all targets share a position
  std::vector<ScoreSpace<P>> spaces;
  for (int i = 0; i < used; i++) spaces.emplace_back(stack, rows);
#pragma omp parallel num_threads(used)
  {
    const ScoreSpace<P>& space = spaces[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1) nowait
    for (Index i = 0; i < count; i++) {
      const Index first = tiles * i / count * kTileRows;
      score_microbatch(stack, pages, tokens, bias, x + first * s.dim, out + first * s.dim,
                       std::min(tiles * (i + 1) / count * kTileRows, targets) - first, turns, space);
    }
  }
}

}  // namespace mfalcon
