"""The Triton kernels of attention on pages are the reference at odd sizes; nothing that is nobody's is read or written.

On a CUDA device where there is one, else in Triton's interpreter (tests/conftest.py).
"""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels import paged_reference
from kernels.gpu import prefix_attention, target_attention
from kernels.gpu.launch import accumulator
from kernels.paged import Batch
from kernels.reach import Reach
from tests.device import DEVICE, INTERPRETED, poisoned
from tests.kernels.paged_world import KINDS, Case, World, cases, tolerance, world

LOGIT_SCALE, NORM = 0.5, 7.0
KIND = pytest.mark.parametrize(("dtype", "codes"), KINDS[1:], ids=lambda kind: str(kind).removeprefix("torch."))


def prefix_bias(host: World) -> Tensor | None:
    """Of all targets on all pages of the batch; NaN behind every prefix and on the batch's spare pages."""
    if host.bias is None:
        return None
    return paged_reference.target_bias(host.kv, host.batch, host.times_ms, host.bias)


def own_bias(host: World) -> Tensor | None:
    return None if host.bias is None else host.bias.own()


def on_device(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(DEVICE, accumulator(dtype))


def over_targets(
    w: World, host: World, batch: Batch, rows: slice | Tensor, bias: Tensor | None, reach: Reach | None = None
) -> Tensor:
    q, k, v = (x[rows] for x in (w.q, w.k, w.v))
    own = on_device(own_bias(host), w.q.dtype)
    with poisoned():
        return target_attention.target_attention(
            q, k, v, w.kv, batch, bias, own, logit_scale=LOGIT_SCALE, norm=NORM, reach=reach
        )


def over_prefix(w: World, batch: Batch, rows: slice, reach: Reach | None = None) -> Tensor:
    with poisoned():
        return prefix_attention.prefix_attention(
            w.q[rows], w.kv, batch, w.bias, logit_scale=LOGIT_SCALE, norm=NORM, reach=reach
        )


def all_of(w: World) -> slice:
    return slice(0, len(w.q))


def assert_close(got: Tensor, expected: Tensor, w: World, dtype: torch.dtype, largest_sum: float) -> None:
    """Rows of users are right, to rounding of the largest sum of magnitudes; rows of nobody are as they were."""
    assert got.dtype == dtype
    rows, rest = got[: w.num_rows].double().cpu(), got[w.num_rows :]
    assert torch.isfinite(rows).all()
    assert rest.isnan().all()
    if rows.numel():
        assert float((rows - expected[: w.num_rows]).abs().max()) <= tolerance(dtype) * largest_sum


def assert_same(got: Tensor, expected: Tensor, dtype: torch.dtype, largest_sum: float) -> None:
    """To the bit on a device. In the interpreter to rounding: sums of numpy's products depend on where in memory their
    operands happen to stand.
    """
    if INTERPRETED and got.numel():
        assert float((got - expected).abs().max()) <= tolerance(dtype) * largest_sum
    else:
        assert torch.equal(got, expected)


def largest_target_sum(host: World, bias: Tensor | None, own: Tensor | None) -> float:
    """The most that an output of targets adds up, without signs."""
    most, size = 0.0, host.kv.page_tokens
    for user in paged_reference.users(host.batch):
        k, v = paged_reference.gather(host.kv, user.pages, user.prefix_len, torch.float64)
        q = host.q[user.rows]
        logits = torch.einsum("mhd,hnd->hmn", q, k) * LOGIT_SCALE
        own_logits = (q * host.k[user.rows]).sum(-1) * LOGIT_SCALE  # [m, H]
        if bias is not None and own is not None:
            logits += bias[:, None, user.first_page * size :][:, :, : user.prefix_len]
            own_logits += own
        sums = (functional.silu(logits).abs() @ v.abs()).transpose(0, 1)
        sums += functional.silu(own_logits).abs().unsqueeze(-1) * host.v[user.rows].abs()
        most = max(most, float(sums.max()) / NORM)
    return most


def largest_prefix_sum(host: World) -> float:
    """The most that an output of a prefix adds up, without signs."""
    most = 0.0
    for user in paged_reference.users(host.batch):
        k, v = paged_reference.gather(host.kv, user.pages, user.prefix_len, torch.float64)
        q = host.q[user.rows]
        n, first = user.prefix_len, user.prefix_len - len(q)
        logits = torch.einsum("mhd,hnd->hmn", q, k) * LOGIT_SCALE
        if host.bias is not None:
            at, times = torch.arange(n), host.kv.times[user.pages].flatten()[:n]
            logits += host.bias.matrix(at[first:], at, times[first:], times)
        sums = functional.silu(logits).abs().tril(first) @ v.abs()
        most = max(most, float(sums.max()) / NORM)
    return most


def check_targets(case: Case, dtype: torch.dtype, codes: torch.dtype | None, reach: Reach | None = None) -> None:
    w = world(case, dtype, codes)
    host = w.host()
    bias, own = prefix_bias(host), own_bias(host)
    expected = paged_reference.target_attention(
        host.q, host.k, host.v, host.kv, host.batch, bias, own, logit_scale=LOGIT_SCALE, norm=NORM, reach=reach
    )
    got = over_targets(w, host, w.batch, all_of(w), on_device(bias, dtype), reach)
    assert_close(got, expected, w, dtype, largest_target_sum(host, bias, own))


def check_prefix(case: Case, dtype: torch.dtype, codes: torch.dtype | None, reach: Reach | None = None) -> None:
    w = world(case, dtype, codes)
    host = w.host()
    expected = paged_reference.prefix_attention(
        host.q, host.kv, host.batch, host.bias, logit_scale=LOGIT_SCALE, norm=NORM, reach=reach
    )
    assert_close(over_prefix(w, w.batch, all_of(w), reach), expected, w, dtype, largest_prefix_sum(host))


@settings(max_examples=14)
@given(cases())
def test_target_attention_is_the_reference(case: Case) -> None:
    check_targets(case, *KINDS[0])


@settings(max_examples=10)
@given(cases(own_rows=True))
def test_prefix_attention_is_the_reference(case: Case) -> None:
    check_prefix(case, *KINDS[0])


@KIND
@settings(max_examples=5)
@given(cases(small=True))
def test_target_attention_in_every_type(dtype: torch.dtype, codes: torch.dtype | None, case: Case) -> None:
    check_targets(case, dtype, codes)


@KIND
@settings(max_examples=5)
@given(cases(own_rows=True, small=True))
def test_prefix_attention_in_every_type(dtype: torch.dtype, codes: torch.dtype | None, case: Case) -> None:
    check_prefix(case, dtype, codes)


@settings(max_examples=8)
@given(cases(small=True), st.sampled_from(KINDS))
def test_no_target_moves_by_its_company(case: Case, kind: tuple[torch.dtype, torch.dtype | None]) -> None:
    """A user's targets are the same alone and beside others, which may have pages of it."""
    w = world(case, *kind)
    host = w.host()
    bias = on_device(prefix_bias(host), kind[0])
    together, first_page = over_targets(w, host, w.batch, all_of(w), bias), 0
    for user, own in enumerate(w.pages):
        rows, batch = w.of(user)
        columns = slice(first_page * case.page_tokens, (first_page + len(own)) * case.page_tokens)
        alone = over_targets(w, host, batch, rows, None if bias is None else bias[:, columns])
        assert_same(together[rows], alone, kind[0], largest_target_sum(host, prefix_bias(host), own_bias(host)))
        first_page += len(own)


@settings(max_examples=8)
@given(cases(own_rows=True, small=True), st.sampled_from(KINDS))
def test_no_token_moves_by_its_company(case: Case, kind: tuple[torch.dtype, torch.dtype | None]) -> None:
    """A user's newest tokens are the same alone and beside others, which may have pages of it."""
    w = world(case, *kind)
    together = over_prefix(w, w.batch, all_of(w))
    for user in range(len(w.pages)):
        rows, batch = w.of(user)
        assert_same(together[rows], over_prefix(w, batch, rows), kind[0], largest_prefix_sum(w.host()))


@settings(max_examples=8)
@given(cases(small=True), st.sampled_from(KINDS), st.sampled_from((2, 17, 40)), st.randoms(use_true_random=False))
def test_order_of_targets_is_order_of_outputs(
    case: Case, kind: tuple[torch.dtype, torch.dtype | None], num_targets: int, random: Random
) -> None:
    """Wherever in a tile a target comes to stand."""
    w = world(replace(case, users=((num_targets, case.users[0][1]),), larger=0), *kind)
    host = w.host()
    bias = on_device(prefix_bias(host), kind[0])
    order = list(range(num_targets))
    random.shuffle(order)
    permuted = over_targets(w, host, w.batch, torch.tensor(order, device=DEVICE), bias)
    in_order = over_targets(w, host, w.batch, all_of(w), bias)
    assert_same(permuted, in_order[order], kind[0], largest_target_sum(host, prefix_bias(host), own_bias(host)))


@settings(max_examples=8)
@given(cases(own_rows=True, small=True), st.sampled_from(KINDS), st.sampled_from((1, 2, 16, 30)))
def test_append_is_prefill(case: Case, kind: tuple[torch.dtype, torch.dtype | None], num_new: int) -> None:
    """The newest tokens of a prefix come out the same with and without the ones before, unless sums are split."""
    n = max(1, case.users[0][1])
    num_new = min(num_new, n)
    w = world(replace(case, users=((n, n),), larger=0, splits=1), *kind)
    append = replace(w, case=replace(w.case, users=((num_new, n),)))
    whole = over_prefix(w, w.batch, all_of(w))
    _, batch = append.of(0)
    appended = over_prefix(w, batch, slice(n - num_new, n))
    assert_same(appended, whole[n - num_new :], kind[0], largest_prefix_sum(w.host()))


def test_nobody_and_no_rows() -> None:
    """Batches without a tile start nothing and write nothing."""
    for users in ((), ((0, 20), (0, 0))):
        case = Case(users, 2, 4, 7, 16, 16, 2, 9, 5, larger=0, slab=True, shared=False, seed=1)
        w = world(case, torch.float32)
        assert over_prefix(w, w.batch, all_of(w)).shape == (0, 2, 7)
        host = w.host()
        bias = on_device(prefix_bias(host), torch.float32)
        assert over_targets(w, host, w.batch, all_of(w), bias).shape == (0, 2, 7)
        w = world(replace(case, larger=2), torch.float32)
        assert over_prefix(w, w.batch, all_of(w)).isnan().all()


def test_poison_shows() -> None:
    """What the other tests rely on: inside, new memory is NaN; outside, all is as before."""
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned():
        assert torch.empty(1000, device=DEVICE).isnan().all()
        assert torch.empty(1000, device=DEVICE, dtype=torch.bfloat16).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
    w = world(Case(((3, 20),), 2, 4, 7, 16, 16, 1, None, 5, larger=1, slab=True, shared=False, seed=1), torch.float32)
    strangers = [page for page in range(len(w.kv.k)) if page not in w.pages[0][:2]]
    assert w.kv.k[strangers].isnan().all() and w.kv.v[strangers].isnan().all()
    assert w.kv.k[w.pages[0][1], :, 4:].isnan().all() and w.kv.k[w.pages[0][1], :, :4].isfinite().all()
    assert w.q[3:].isnan().all() and w.q[:3].isfinite().all()


REACHES = st.sampled_from((Reach(1, 1), Reach(5, 20), Reach(20, 5, 3), Reach(33, 33, 17), Reach(9, 40, 70)))


@settings(max_examples=6)
@given(cases(small=True), st.sampled_from(KINDS), REACHES)
def test_targets_that_see_a_part(case: Case, kind: tuple[torch.dtype, torch.dtype | None], reach: Reach) -> None:
    check_targets(case, *kind, reach)


@settings(max_examples=8)
@given(cases(own_rows=True, small=True), st.sampled_from(KINDS), REACHES)
def test_tokens_that_see_a_part(case: Case, kind: tuple[torch.dtype, torch.dtype | None], reach: Reach) -> None:
    check_prefix(case, *kind, reach)


def test_pages_that_no_query_sees_are_not_read() -> None:
    """They hold NaN, which would show if their weights were 0 instead."""
    reach, num_pages = Reach(20, 20, 3), 5
    case = Case(((4, 80),), 2, 4, 7, 16, 16, 2, 9, 5, larger=0, slab=True, shared=False, seed=1)
    w = world(case, torch.float32)
    for page in w.pages[0][1 : num_pages - 2]:
        w.kv.k[page], w.kv.v[page] = float("nan"), float("nan")
    bias = torch.zeros(2, len(w.batch.pages) * 16, device=DEVICE)
    own = torch.zeros(2, device=DEVICE)
    form = {"logit_scale": LOGIT_SCALE, "norm": NORM}
    seen = target_attention.target_attention(w.q, w.k, w.v, w.kv, w.batch, bias, own, reach=reach, **form)
    assert torch.isfinite(seen).all()
    assert torch.isfinite(prefix_attention.prefix_attention(w.q, w.kv, w.batch, w.bias, reach=reach, **form)).all()
