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

// The same runs for rows one after the other, of keys and rows in the order of their times. Where a threshold ends moves
// to later keys from row to row, so each is followed instead of sought: O(rows * thresholds + keys) for all of them.
class FollowedRuns {
 public:
  FollowedRuns(const std::vector<std::int64_t>& thresholds, const std::int64_t* times)
      : thresholds_(thresholds), times_(times), reached_(thresholds.size(), 0) {}

  // Whether rows of these times may be followed: nothing is out of order among them, and no difference wraps around.
  static bool can_follow(const std::int64_t* query_times, Index rows, const std::int64_t* times, Index num_keys) {
    std::int64_t difference;
    return std::is_sorted(query_times, query_times + rows) &&
           !__builtin_sub_overflow(query_times[rows - 1], times[0], &difference) &&
           !__builtin_sub_overflow(query_times[0], times[num_keys - 1], &difference);
  }

  // Appends the runs of keys [0, num_keys), neither fewer nor seen from an earlier time than those of the row before.
  void append(std::vector<Run>& runs, std::int64_t query_time, Index num_keys) {
    const auto reach = [&](Index key) { return query_time - times_[key]; };
    while (most_ < static_cast<Index>(thresholds_.size()) && reach(0) >= thresholds_[most_]) most_++;
    Index first = 0, i = most_;
    for (; i > 0 && num_keys - first > 1; i--) {
      Index& stop = reached_[i - 1];  // the keys before it reach this threshold
      stop = std::max(stop, first);
      while (stop < num_keys && reach(stop) >= thresholds_[i - 1]) stop++;
      if (stop > first) runs.push_back({stop, i});
      first = stop;
    }
    if (first < num_keys) {  // in no bucket above i; many thresholds are too near for any key but the row's own
      while (i > 0 && reach(first) < thresholds_[i - 1]) i--;
      runs.push_back({num_keys, i});
    }
    runs.back().stop = std::numeric_limits<Index>::max();
  }

 private:
  const std::vector<std::int64_t>& thresholds_;
  const std::int64_t* times_;
  std::vector<Index> reached_;
  Index most_ = 0;  // thresholds that the first key reaches
};

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

// The weight of a query's distance to a key stands so far, plus the key, into a head's row of distances. Keys that are
// too far have a negative place: they read its first vector.
template <class P>
inline Index near_offset(const Shape& s, Index query) {
  return P::kLanes + (s.num_positions - 1) - query;
}

// The run that key `key` is in, of those from `run` on.
inline const Run* run_at(const Run* run, Index key) {
  while (run->stop <= key) run++;
  return run;
}

// rab of one query on keys [first, last) of a head. `out` has room for a vector more.
template <class P>
inline void bias_row(const RelativeBias& bias, const Shape& s, Index head, Index query, const Run* run, Index first,
                     Index last, float* out) {
  const float* time = bias.time.get() + head * (s.num_buckets + 1);
  const float* far = bias.position.get() + head * bias.position_stride;
  const Index near = near_offset<P>(s, query);
  run = run_at(run, first);
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
