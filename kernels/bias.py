"""rab^{p,t}: the relative attention bias of the HSTU paper (section 3.2), by distance and by time difference.

Time is bucketed by integer thresholds instead of a floating-point logarithm, so that every backend and every replica
puts a difference into the same bucket.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_INT64_MAX = 2**63 - 1
_MAX_EXPONENT = 64.0
"""exp of it is beyond int64 in any unit."""


def time_thresholds(num_buckets: int, width: float, unit_ms: int) -> Tensor:
    """Smallest difference in milliseconds of each bucket from 1 up. Returns int64 [num_buckets].

    Equal to clamp(floor(ln(max(1, dt)) / width), 0, num_buckets) with dt in units of `unit_ms`.
    """
    exponents = (min(width * bucket, _MAX_EXPONENT) for bucket in range(1, num_buckets + 1))
    return torch.tensor([min(math.ceil(math.exp(x) * unit_ms), _INT64_MAX) for x in exponents], dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """Weights of one layer's rab.

    position: [num_heads, num_positions] by distance (query position - key position), the last one for all beyond.
    time: [num_heads, num_buckets + 1] by bucket of (query time - key time).
    thresholds: int64 [num_buckets], see `time_thresholds`.
    """

    position: Tensor
    time: Tensor
    thresholds: Tensor

    def matrix(self, q_pos: Tensor, k_pos: Tensor, q_time: Tensor, k_time: Tensor) -> Tensor:
        """Bias of every query and key: [..., q] and [..., k] -> [..., num_heads, q, k].

        Positions and times are int64 and broadcast over leading dimensions. Keys after their query get a bias too;
        the caller's mask removes them.
        """
        distance = (q_pos.unsqueeze(-1) - k_pos.unsqueeze(-2)).clamp(0, self.position.shape[1] - 1)
        by_position = _gather(self.position, distance)
        bucket = torch.bucketize(q_time.unsqueeze(-1) - k_time.unsqueeze(-2), self.thresholds, right=True)
        return by_position + _gather(self.time, bucket)

    def vector(self, q_pos: int, k_pos: Tensor, q_time: int, k_time: Tensor) -> Tensor:
        """Bias of the targets of one request, which share position and time: [num_keys] -> [num_heads, num_keys]."""
        distance = (q_pos - k_pos).clamp(0, self.position.shape[1] - 1)
        bucket = torch.bucketize(q_time - k_time, self.thresholds, right=True)
        return self.position.index_select(1, distance) + self.time.index_select(1, bucket)

    def own(self) -> Tensor:
        """Bias of a token on itself (distance and difference 0): [num_heads]."""
        return self.position[:, 0] + self.time[:, 0]


def _gather(weight: Tensor, index: Tensor) -> Tensor:
    """[num_heads, size], [..., q, k] -> [..., num_heads, q, k].

    As a gather along one dimension: an embedding lookup of such narrow rows is 30 times slower, forward and backward.
    """
    flat = weight.gather(1, index.reshape(1, -1).expand(weight.shape[0], -1))
    return flat.view(weight.shape[0], *index.shape).movedim(0, -3)
