"""A stack of layers for the fused CPU kernel: weights packed once, KV states in pages, a call per phase."""

import ctypes
import weakref
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from kernels.cpu.library import CConfig, CLayer, Kernel
from kernels.stack import LayerWeights, StackConfig

PAGE_TOKENS = 128
"""Tokens of a page, unless told otherwise: on AVX2 within 2% of the time with 256, where 64 takes up to 4% more."""


_ALL = -1
"""MfLayer.reach_tokens of a layer whose tokens see all of a prefix."""


class FusedStack:
    """The weights of a stack, packed once for one kernel. Safe to use from several threads: it never changes.

    float32 in and out; the operands of products are in the kernel's dtype, the residual in float32.

    A KV state is its number of tokens and an int64 tensor of the addresses of its pages: token t is in page
    t // page_tokens. A page is memory of `page_bytes` bytes, aligned to 64, of all layers and heads:
    int64 times[page_tokens], milliseconds; then per layer and head K and V in the kernel's order, in its dtype or in
    int8; in int8 also their float32 scales, [page_tokens] of K and of V. What lies beyond the tokens of a state may be
    anything. Who owns pages keeps them alive during a call, and lets no other call write the tokens that it reads.

    int8: a token's K (and V) of one head is its largest magnitude / 127 and codes of -127 to 127. All attend to what
    stands in the pages; only a target's own K and V are exact.
    """

    def __init__(
        self,
        kernel: Kernel,
        config: StackConfig,
        layers: Sequence[LayerWeights],
        page_tokens: int = PAGE_TOKENS,
        int8: bool = False,
    ) -> None:
        """Raises ValueError for weights that do not fit the configuration, and for a page that the kernel cannot cut.

        page_tokens: 32, or a multiple of 64.
        """
        self.kernel = kernel
        self.config = config
        self.num_layers = len(layers)
        self.page_tokens = page_tokens
        self.int8 = int8
        _require(self.num_layers > 0, "a stack has at least one layer")
        sizes = (config.num_heads, config.dim, config.qk_dim, config.v_dim)
        _require(min(sizes) > 0, f"num_heads, dim, qk_dim, v_dim: {sizes}, all must be positive")
        is_even = config.rotary_base is None or config.qk_dim % 2 == 0
        _require(is_even, f"qk_dim: {config.qk_dim}, must be even with rotary positions")
        _require(config.attention_norm > 0, f"attention_norm: {config.attention_norm}, must be positive")
        self._check_page_tokens(page_tokens)
        alive: list[Tensor] = []
        packed = (CLayer * self.num_layers)(*(_layer(config, layer, alive) for layer in layers))
        num_positions, thresholds = _shared_bias(layers)
        alive.append(thresholds)
        shared = CConfig(
            num_layers=self.num_layers,
            num_heads=config.num_heads,
            dim=config.dim,
            qk_dim=config.qk_dim,
            v_dim=config.v_dim,
            num_positions=num_positions,
            num_buckets=len(thresholds),
            page_tokens=page_tokens,
            int8=int(int8),
            activate_all=int(config.activate_all),
            concat=int(config.concat),
            softmax=int(config.softmax),
            attention_norm=config.attention_norm,
            logit_scale=config.logit_scale,
            norm_eps=config.norm_eps,
            rotary_base=config.rotary_base or 0.0,
        )
        handle = ctypes.c_void_p()
        _done(kernel.stack_new(ctypes.byref(shared), packed, thresholds.data_ptr(), ctypes.byref(handle)))
        self._own(handle)

    def on_pages(self, page_tokens: int) -> "FusedStack":
        """The same weights, shared and not copied, for states on pages of another size. Raises ValueError."""
        self._check_page_tokens(page_tokens)
        other = copy(self)
        other.page_tokens = page_tokens
        handle = ctypes.c_void_p()
        _done(self.kernel.stack_on_pages(self._handle, page_tokens, ctypes.byref(handle)))
        other._own(handle)
        return other

    def extend(
        self, pages: Tensor, num_tokens: int, x: Tensor, threads: int = 1, query_times: Tensor | None = None
    ) -> None:
        """Prefill (num_tokens 0) and append: tokens x [num_new, dim] enter a state behind its first num_tokens.

        pages: int64 [num_pages] addresses, enough for all tokens. The new tokens' times stand in them already.
        query_times: what the new tokens' own bias reads, int64 [num_new], if not their times (golden/README.md, variant
        research). Raises ValueError.
        """
        x, num_new = self._hidden(x), len(x)
        pages = self._pages(pages, num_tokens, num_new)
        if query_times is not None:
            query_times = _tensor("query_times", query_times, torch.int64, (num_new,))
        _require(threads > 0, f"threads: {threads}, must be positive")
        _done(
            self.kernel.extend(
                self._handle,
                pages.data_ptr(),
                num_tokens,
                None if query_times is None else query_times.data_ptr(),
                x.data_ptr(),
                num_new,
                threads,
            )
        )

    def score(
        self, pages: Tensor, num_tokens: int, x: Tensor, time_ms: int, threads: int = 1, microbatch: int = 96
    ) -> Tensor:
        """Targets x [num_targets, dim] of one request time through all layers -> [num_targets, dim].

        They see the num_tokens of a state in pages, int64 [num_pages] addresses. microbatch: most targets that a thread
        takes through the layers at once; no result depends on it. Raises ValueError.
        """
        x = self._hidden(x)
        pages = self._pages(pages, num_tokens, 0)
        _require(threads > 0 and microbatch > 0, f"threads {threads}, microbatch {microbatch}: must be positive")
        out = torch.empty_like(x)
        _done(
            self.kernel.score(
                self._handle,
                pages.data_ptr(),
                num_tokens,
                time_ms,
                x.data_ptr(),
                out.data_ptr(),
                len(x),
                microbatch,
                threads,
            )
        )
        return out

    def read(self, pages: Tensor, layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Tokens first to stop - 1 of a layer: K [num_heads, stop - first, qk_dim] and V [.., v_dim], float32.

        Raises ValueError.
        """
        pages, config, num_tokens = self._pages(pages, first, stop - first), self.config, stop - first
        self._check_layer(layer)
        k = torch.empty(config.num_heads, num_tokens, config.qk_dim)
        v = torch.empty(config.num_heads, num_tokens, config.v_dim)
        self.kernel.read(self._handle, pages.data_ptr(), layer, first, k.data_ptr(), v.data_ptr(), num_tokens)
        return k, v

    def write(self, pages: Tensor, layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """The inverse of `read`, from token `first` on; rounded to what pages hold. Raises ValueError."""
        config, num_tokens = self.config, k.shape[1] if k.ndim == 3 else 0
        k = _tensor("k", k, torch.float32, (config.num_heads, num_tokens, config.qk_dim))
        v = _tensor("v", v, torch.float32, (config.num_heads, num_tokens, config.v_dim))
        pages = self._pages(pages, first, num_tokens)
        self._check_layer(layer)
        _done(self.kernel.write(self._handle, pages.data_ptr(), layer, first, k.data_ptr(), v.data_ptr(), num_tokens))

    def copy(self, pages: Tensor, other: "FusedStack", others: Tensor, num_tokens: int) -> None:
        """The first tokens of a state with their times, as they stand, to pages of the size of a stack of the same
        shape. Raises ValueError.
        """
        pages, others = self._pages(pages, num_tokens, 0), other._pages(others, num_tokens, 0)
        _done(self.kernel.copy(self._handle, pages.data_ptr(), other._handle, others.data_ptr(), num_tokens))

    def is_finite(self, pages: Tensor, layer: int, first: int, stop: int) -> bool:
        """Whether tokens first to stop - 1 of a layer have only finite keys and values. Raises ValueError."""
        pages = self._pages(pages, first, stop - first)
        self._check_layer(layer)
        return bool(self.kernel.finite(self._handle, pages.data_ptr(), layer, first, stop - first))

    def _own(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle
        self.page_bytes: int = self.kernel.page_bytes(handle)
        weakref.finalize(self, self.kernel.stack_free, handle).atexit = False  # a thread may compute to the very end

    def _check_page_tokens(self, page_tokens: int) -> None:
        step, small = self.kernel.page_step, self.kernel.small_page
        whole = page_tokens == small or (page_tokens > 0 and page_tokens % step == 0)
        _require(whole, f"page_tokens: {page_tokens}, must be {small} or a positive multiple of {step}")

    def _hidden(self, x: Tensor) -> Tensor:
        return _tensor("x", x, torch.float32, (x.shape[0] if x.ndim else 0, self.config.dim))

    def _pages(self, pages: Tensor, num_tokens: int, num_new: int) -> Tensor:
        """Addresses of pages that hold num_new tokens behind num_tokens."""
        pages = _tensor("pages", pages, torch.int64, (pages.numel(),))
        _require(num_tokens >= 0 and num_new >= 0, f"tokens: {num_new} behind {num_tokens}, must not be negative")
        needed = num_tokens + num_new
        enough = needed <= len(pages) * self.page_tokens
        _require(enough, f"pages: {len(pages)} of {self.page_tokens} tokens, too few for {needed}")
        return pages

    def _check_layer(self, layer: int) -> None:
        _require(0 <= layer < self.num_layers, f"layer: {layer}, must be one of {self.num_layers}")


def _layer(config: StackConfig, weights: LayerWeights, alive: list[Tensor]) -> CLayer:
    """Pointers to contiguous float32 copies, which `alive` holds while they are packed."""

    def pointer(name: str, tensor: Tensor | None, *shape: int) -> int | None:
        if tensor is None:
            return None
        _require(tensor.is_floating_point(), f"{name}: {tensor.dtype}, must be floating point")
        alive.append(_tensor(name, tensor.detach().float(), torch.float32, shape))
        return alive[-1].data_ptr()

    heads, dim, v_width = config.num_heads, config.dim, config.num_heads * config.v_dim
    columns = 2 * heads * (config.v_dim + config.qk_dim)
    norm_in, norm_out = weights.norm_in or (None, None), weights.norm_out or (None, None)
    bias, reach = weights.bias, weights.reach
    return CLayer(
        norm_in_weight=pointer("norm_in weight", norm_in[0], dim),
        norm_in_bias=pointer("norm_in bias", norm_in[1], dim),
        uvqk_weight=pointer("uvqk", weights.uvqk, columns, dim),
        uvqk_bias=pointer("uvqk_bias", weights.uvqk_bias, columns),
        norm_out_weight=pointer("norm_out weight", norm_out[0], v_width),
        norm_out_bias=pointer("norm_out bias", norm_out[1], v_width),
        output_weight=pointer("output", weights.output, dim, (3 if config.concat else 1) * v_width),
        output_bias=pointer("output_bias", weights.output_bias, dim),
        position=None if bias is None else pointer("bias.position", bias.position, heads, bias.position.shape[1]),
        time=None if bias is None else pointer("bias.time", bias.time, heads, len(bias.thresholds) + 1),
        reach_tokens=_ALL if reach is None else reach.tokens,
        reach_targets=_ALL if reach is None else reach.targets,
        reach_first=0 if reach is None else reach.first,
    )


def _shared_bias(layers: Sequence[LayerWeights]) -> tuple[int, Tensor]:
    """Number of positions (0: no bias) and thresholds, the same in every layer."""
    biases = [layer.bias for layer in layers]
    first = biases[0]
    if first is None:
        _require(all(bias is None for bias in biases), "bias: only some layers have one")
        return 0, torch.zeros(0, dtype=torch.int64)
    for bias in biases:
        same = (
            bias is not None
            and bias.position.shape == first.position.shape
            and torch.equal(bias.thresholds, first.thresholds)
        )
        _require(same, "bias: layers differ in positions or thresholds")
    thresholds = first.thresholds.contiguous()
    _require(bool((thresholds[1:] >= thresholds[:-1]).all()), "bias.thresholds: must ascend")
    return first.position.shape[1], _tensor("bias.thresholds", thresholds, torch.int64, (len(thresholds),))


def _tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A contiguous tensor on the CPU. Raises ValueError for any other shape, dtype or device."""
    _require(tensor.shape == shape, f"{name}: shape {tuple(tensor.shape)}, must be {shape}")
    _require(tensor.dtype == dtype, f"{name}: {tensor.dtype}, must be {dtype}")
    _require(tensor.device.type == "cpu", f"{name}: on {tensor.device}, must be on the CPU")
    return tensor.contiguous()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _done(result: int) -> None:
    if result:
        raise MemoryError("the fused kernel ran out of memory")
