"""The counted floor: the least arithmetic that each phase needs, over what the machine can do at its peak.

Counted from the shapes alone, for L layers of width d with H heads (head dimensions d / H):

- a token through a layer: 8d^2 FLOPs into u, v, q, k and 2d^2 out, and 4d SiLUs;
- a query on a key: 2d FLOPs for the product and 2d for the weighted value over all heads, and H SiLUs;
- a target sees the n prefix tokens and itself: n + 1 keys;
- a prefix token sees itself and all before it;
- the last layer of a prefix needs keys and values alone: 4d^2 FLOPs and 2d SiLUs a token, and no attention.

Left out: embeddings, norms, biases, gates, heads, and all memory traffic. So no program reaches it, and 100% means
arithmetic only.
"""

from dataclasses import dataclass

from loadtest.bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of matrix products, and SiLUs."""

    flops: int
    silus: int

    def seconds(self, flops_per_second: float, silus_per_second: float) -> float:
        """Time at peak. The two add up: both run in the vector units of the same cores."""
        return self.flops / flops_per_second + self.silus / silus_per_second


def score_work(shape: Shape, num_prefix: int, num_targets: int) -> Work:
    """Scoring targets against a cached prefix: L m (10d^2 + 4d(n+1)) FLOPs, L m (4d + H(n+1)) SiLUs."""
    d, keys = shape.dim, num_prefix + 1
    tokens = shape.num_layers * num_targets
    return Work(
        flops=tokens * (10 * d * d + 4 * d * keys),
        silus=tokens * (4 * d + shape.num_heads * keys),
    )


def append_work(shape: Shape, num_prefix: int, num_new: int) -> Work:
    """Encoding new events (one token each) behind a cached prefix."""
    d, full_layers = shape.dim, shape.num_layers - 1
    pairs = num_new * num_prefix + num_new * (num_new + 1) // 2
    return Work(
        flops=full_layers * (num_new * 10 * d * d + 4 * d * pairs) + num_new * 4 * d * d,
        silus=full_layers * (num_new * 4 * d + shape.num_heads * pairs) + num_new * 2 * d,
    )


def prefill_work(shape: Shape, num_prefix: int) -> Work:
    """Encoding a history: an append to nothing."""
    return append_work(shape, 0, num_prefix)


def sum_work(a: Work, b: Work) -> Work:
    """One after the other."""
    return Work(a.flops + b.flops, a.silus + b.silus)
