// What is read off hidden targets, in one call: context and dense features join them, then heads and item biases make
// scores. A row passes from end to end on one thread; no row's result depends on those beside it.
#pragma once
#include <omp.h>

#include "linear.h"
#include "pack.h"
#include "rows.h"

namespace mfalcon {

constexpr Index kReadoutRows = 8 * kTileRows;  // at once: what lies between the products stays in the first cache

template <class P>
struct Readout {
  Index num_tasks, num_codes, num_rows, num_contexts;
  Norm norm;
  float eps;
  Linear<P> first, last;
  std::unique_ptr<const Linear<P>> dense_first, dense_last;
  const float *item_bias, *context;  // the caller's, who keeps them alive
  std::vector<std::int64_t> first_codes;
  std::vector<bool> is_binary;
  std::vector<float> centers;

  explicit Readout(const MfReadout& c)
      : num_tasks(c.num_tasks),
        num_codes(c.num_codes),
        num_rows(c.num_rows),
        num_contexts(c.num_contexts),
        norm(packed_norm(round_up(c.dim, P::kLanes), c.dim, c.norm_weight, c.norm_bias,
                         [&](Index i) { return i < c.dim ? i : -1; })),
        eps(static_cast<float>(c.norm_eps)),
        first(c.first_weight, c.first_bias, c.dim, c.hidden),
        last(c.last_weight, c.last_bias, c.hidden, c.num_tasks),
        item_bias(c.item_bias),
        context(c.context),
        first_codes(c.first_codes, c.first_codes + c.num_codes),
        is_binary(c.is_binary, c.is_binary + c.num_tasks),
        centers(c.centers, c.centers + c.num_tasks) {
    if (c.num_features) {
      dense_first = std::make_unique<Linear<P>>(c.dense_first_weight, c.dense_first_bias, c.num_features,
                                                c.dense_hidden);
      dense_last = std::make_unique<Linear<P>>(c.dense_last_weight, c.dense_last_bias, c.dense_hidden, c.dim);
    }
  }

  bool in_range(const MfTargets& t) const {
    for (Index r = 0; r < t.num_targets; r++) {
      if (t.rows[r] < 0 || t.rows[r] >= num_rows) return false;
    }
    for (Index r = 0; r < (t.codes_stride ? t.num_targets : 1); r++) {
      for (Index i = 0; i < num_codes; i++) {
        const Index row = t.codes[r * t.codes_stride + i] + first_codes[i];
        if (row < 0 || row >= num_contexts) return false;
      }
    }
    return true;
  }
};

// One thread's memory for the rows that it has in hand.
template <class P>
struct ReadoutSpace {
  Index x_stride, h_stride, d_stride;
  Buffer<float> x, a, h, d, context;

  explicit ReadoutSpace(const Readout<P>& of)
      : x_stride(row_stride(of.norm.columns)),
        h_stride(row_stride(of.first.padded)),
        d_stride(row_stride(of.dense_first ? of.dense_first->padded : 0)),
        x(kReadoutRows * x_stride),
        a(kReadoutRows * x_stride),
        h(kReadoutRows * h_stride),
        d(kReadoutRows * d_stride),
        context(of.norm.columns) {}
};

template <class P, class Done>
void apply_linear(const Linear<P>& layer, const float* x, Index stride, Index rows, Done done) {
  linear<P>(x, stride, rows, Panels<P>{layer.weight.get(), layer.depth, layer.padded}, 0, layer.padded,
            [&](Index c) { return P::load(layer.bias.get() + c); }, done);
}

// The sum of a target's context vectors, of whole vectors -> out.
template <class P>
void sum_context(const Readout<P>& of, const std::int64_t* codes, float* out) {
  const Index dim = of.first.depth;
  for (Index c = 0; c < of.norm.columns; c += P::kLanes) {
    auto sum = P::zero();
    for (Index i = 0; i < of.num_codes; i++) {
      sum = P::add(sum, load_lanes<P>(of.context + (codes[i] + of.first_codes[i]) * dim + c, dim - c));
    }
    P::store(out + c, sum);
  }
}

// Hidden targets from `first` on, with their context -> x. shared: the context of all, if they have one.
template <class P>
void join_context(const Readout<P>& of, const MfTargets& t, Index first, Index rows, const float* shared,
                  const ReadoutSpace<P>& space) {
  const Index dim = of.first.depth;
  for (Index r = 0; r < rows; r++) {
    const float* context = shared;
    if (t.codes_stride) {
      sum_context(of, t.codes + (first + r) * t.codes_stride, space.context.get());
      context = space.context.get();
    }
    const float* hidden = t.hidden + (first + r) * dim;
    float* x = space.x.get() + r * space.x_stride;
    for (Index c = 0; c < of.norm.columns; c += P::kLanes) {
      P::store(x + c, P::add(load_lanes<P>(hidden + c, dim - c), P::load(context + c)));
    }
  }
}

// x += what the dense features are worth; without any given, what their means are worth.
template <class P>
void join_dense(const Readout<P>& of, const MfTargets& t, Index first, Index rows, const ReadoutSpace<P>& space) {
  const Index num_features = of.dense_first->depth;
  const auto means = Buffer<float>::zeros(t.features ? 0 : num_features);
  const float* features = t.features ? t.features + first * num_features : means.get();
  apply_linear(*of.dense_first, features, t.features ? num_features : 0, rows,
               [&](Index r, Index c, typename P::Vector y) {
                 P::store(space.d.get() + r * space.d_stride + c, silu<P>(y));
               });
  apply_linear(*of.dense_last, space.d.get(), space.d_stride, rows, [&](Index r, Index c, typename P::Vector y) {
    float* at = space.x.get() + r * space.x_stride + c;
    P::store(at, P::add(y, P::load(at)));
  });
}

template <class P>
void read_rows(const Readout<P>& of, const MfTargets& t, Index first, Index rows, const float* shared,
               const ReadoutSpace<P>& space) {
  join_context(of, t, first, rows, shared, space);
  if (of.dense_first) join_dense(of, t, first, rows, space);
  for (Index r = 0; r < rows; r++) {
    normalise<P>(space.x.get() + r * space.x_stride, of.norm, of.eps, [&](Index i, typename P::Vector y) {
      P::store(space.a.get() + r * space.x_stride + i, y);
    });
  }
  apply_linear(of.first, space.a.get(), space.x_stride, rows, [&](Index r, Index c, typename P::Vector y) {
    P::store(space.h.get() + r * space.h_stride + c, silu<P>(y));
  });
  apply_linear(of.last, space.h.get(), space.h_stride, rows, [&](Index r, Index c, typename P::Vector y) {
    const Index count = std::min<Index>(P::kLanes, of.num_tasks - c);
    const float* bias = of.item_bias + t.rows[first + r] * of.num_tasks + c;
    float* out = t.out + (first + r) * of.num_tasks + c;
    const auto raw = P::add(y, load_lanes<P>(bias, count));
    float values[P::kLanes], shares[P::kLanes];
    P::store(values, raw);
    P::store(shares, sigmoid<P>(raw));
    for (Index i = 0; i < count; i++) out[i] = of.is_binary[c + i] ? shares[i] : values[i] + of.centers[c + i];
  });
}

// See mf_readout; throws std::bad_alloc.
template <class P>
void read_out(const Readout<P>& of, const MfTargets& t, Index threads) {
  const Index chunks = (t.num_targets + kReadoutRows - 1) / kReadoutRows;
  const int used = static_cast<int>(std::max<Index>(1, std::min(threads, chunks)));
  const auto shared = Buffer<float>(of.norm.columns);
  if (!t.codes_stride) sum_context(of, t.codes, shared.get());
  std::vector<ReadoutSpace<P>> spaces;
  for (int i = 0; i < used; i++) spaces.emplace_back(of);
#pragma omp parallel for num_threads(used) schedule(static)
  for (Index chunk = 0; chunk < chunks; chunk++) {
    const Index first = chunk * kReadoutRows;
    const Index rows = std::min(kReadoutRows, t.num_targets - first);
    read_rows(of, t, first, rows, shared.get(), spaces[omp_get_thread_num()]);
  }
}

}  // namespace mfalcon
