// rab^{p,t} as rows of logits: by distance and by bucket of the time difference (kernels/bias.py is the definition).
#pragma once
#include <limits>
#include <vector>

#include "stack.h"

namespace mfalcon {

// Keys up to `stop` (exclusive) whose time difference to one query is in one bucket.
struct Run {
  Index stop;
  Index bucket;
};

// The bucket of a difference is the number of thresholds that it reaches; any order of times. Appends the runs of keys
// [0, num_keys); the last one has no end, so that vectors may run over.
inline void append_runs(std::vector<Run>& runs, const std::vector<std::int64_t>& thresholds, std::int64_t query_time,
                        const std::int64_t* times, Index num_keys) {
  constexpr auto kLowest = std::numeric_limits<std::int64_t>::min();
  const auto reach = [&](Index key) {  // wraps around like torch's
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(query_time) - static_cast<std::uint64_t>(times[key]));
  };
  Index key = 0;
  while (key < num_keys) {
    const auto above = std::upper_bound(thresholds.begin(), thresholds.end(), reach(key));
    const std::int64_t low = above == thresholds.begin() ? kLowest : above[-1];
    if (above == thresholds.end()) {
      while (key < num_keys && reach(key) >= low) key++;
    } else {
      while (key < num_keys && reach(key) >= low && reach(key) < *above) key++;
    }
    runs.push_back({key, above - thresholds.begin()});
  }
  if (num_keys == 0) runs.push_back({0, 0});
  runs.back().stop = std::numeric_limits<Index>::max();
}

// A row of distances: [lanes of the far weight | weights, far to near | zeros, for keys that the mask removes].
template <class P>
RelativeBias packed_bias(const Shape& s, const MfLayer& w) {
  if (!w.position) return {Buffer<float>(0), Buffer<float>(0), 0};
  const Index n = s.num_positions, buckets = s.num_buckets + 1;
  const Index stride = P::kLanes + n + Panels<P>::kPanel + kTileRows;
  auto position = Buffer<float>::zeros(s.heads * stride);
  Buffer<float> time(s.heads * buckets);
  std::copy_n(w.time, s.heads * buckets, time.get());
  for (Index head = 0; head < s.heads; head++) {
    const float* from = w.position + head * n;
    float* to = position.get() + head * stride;
    std::fill_n(to, P::kLanes, from[n - 1]);
    std::reverse_copy(from, from + n, to + P::kLanes);
  }
  return {std::move(position), std::move(time), stride};
}

// rab of one query on keys [first, last) of a head. `out` has room for a vector more.
template <class P>
inline void bias_row(const RelativeBias& bias, const Shape& s, Index head, Index query, const Run* run, Index first,
                     Index last, float* out) {
  const float* time = bias.time.get() + head * (s.num_buckets + 1);
  const float* far = bias.position.get() + head * bias.position_stride;
  const Index near = P::kLanes + (s.num_positions - 1) - query;  // far[near + key] is the weight of query - key
  while (run->stop <= first) run++;
  for (Index key = first; key < last; run++) {
    const Index stop = std::min(run->stop, last);
    const auto of_bucket = P::set(time[run->bucket]);
    for (; key < stop; key += P::kLanes) {
      P::store(out + key - first, P::add(P::load(far + std::max(near + key, Index{0})), of_bucket));
    }
    key = stop;
  }
}

// rab of a token on itself.
template <class P>
inline float own_bias(const RelativeBias& bias, const Shape& s, Index head) {
  const float* far = bias.position.get() + head * bias.position_stride;
  return far[P::kLanes + s.num_positions - 1] + bias.time.get()[head * (s.num_buckets + 1)];
}

}  // namespace mfalcon
