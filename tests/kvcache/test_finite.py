"""What is not finite is seen in the last layer, wherever it arose and whatever computes; of others nothing is."""

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mfalcon.algorithm import append_all, prefill
from mfalcon.backends.select import PoolBudget, ServedModel, reference, serve
from mfalcon.kvcache.finite import finiteness
from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from mfalcon.models.base import Ranker, prefix_ranker
from mfalcon.models.registry import prefix_rankers
from tests.device import needs_interpreter
from tests.small import random_events, small_checkpoint, small_config, tokens

BUDGET = PoolBudget(1 << 20, 1, 64)
EVENTS = 9
BACKENDS = [
    ("reference", torch.float64, "auto"),
    ("reference", torch.float32, "auto"),
    ("reference", torch.bfloat16, "auto"),
    ("reference", torch.float16, "auto"),
    ("auto", torch.float32, "auto"),
    ("auto", torch.bfloat16, "auto"),
    ("auto", torch.float32, "int8"),
    ("auto", torch.bfloat16, "int8"),
    ("triton", torch.float32, "auto"),
    ("triton", torch.float32, "fp8"),
]


def cases() -> list[object]:
    """Every backend with every damage; in the interpreter, at seconds each, two always and all in `make thorough`."""
    found: list[object] = []
    hows = ["item nan", "item inf", *(f"weight {i} {part}" for i in range(3) for part in "uvqk")]
    for architecture, backend, how in itertools.product(prefix_rankers(), BACKENDS, hows):
        marks = [needs_interpreter] if backend[0] == "triton" else []
        if marks and (architecture != "dfgr" or how not in ("item nan", "weight 1 k")):
            marks.append(pytest.mark.thorough)
        name = f"{architecture}-{'-'.join(map(str, backend))}-{how}".replace("torch.", "")
        found.append(pytest.param(architecture, backend, how, marks=marks, id=name))
    return found


def not_finite(state: KVState, layers: range) -> set[int]:
    """Tokens with a key or a value of some layer that is not finite, one by one."""
    found: set[int] = set()
    for layer in layers:
        for numbers in state.read(layer):
            found |= set(torch.nonzero(~torch.isfinite(numbers).all(2).all(0)).flatten().tolist())
    return found


def spoil(model: Ranker, how: str, row: int) -> None:
    """Have one item, or what one layer makes of every token, overflow or be no number."""
    kind, *where = how.split()
    if kind == "item":
        model.items.id.weight[row] = float(where[0])
        return
    layer, part = prefix_ranker(model).stack.layers[int(where[0])], where[1]
    width_v, width_qk = 2 * 7, 2 * 4  # heads * v_dim, heads * qk_dim
    at = {"u": 0, "v": width_v, "q": 2 * width_v, "k": 2 * width_v + width_qk}[part]
    size = width_v if part in "uv" else width_qk
    weight = layer.get_submodule("uvqk").get_parameter("weight")
    weight[at : at + size] *= torch.finfo(weight.dtype).max / 8


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes by numpy, which warns of overflow
@pytest.mark.parametrize(("architecture", "backend", "how"), cases())
def test_the_last_layer_shows_it(architecture: str, backend: tuple[str, torch.dtype, str], how: str) -> None:
    """No token that is not finite in an earlier layer is finite in the last one: nothing makes it so again."""
    name, dtype, kv_dtype = backend
    config = small_config(architecture, num_layers=3)
    checkpoint = small_checkpoint(architecture, dtype, config=config)
    events = random_events(EVENTS)
    row = int(checkpoint.items.rows(events["item_id"][4:5])[0])
    spoil(checkpoint.model, how, row)
    served = serve(checkpoint.model, name, BUDGET, kv_dtype)
    with torch.inference_mode():
        state = prefill(served, tokens(checkpoint, events))
        anywhere, shown = not_finite(state, range(3)), not_finite(state, range(2, 3))
        assert anywhere == shown
        if how.startswith("item"):
            assert shown
        for first in range(state.num_tokens + 1):
            expected = not any(token >= first for token in shown)
            assert state.is_finite(first) == expected
            assert finiteness([state], [first])() == [expected]


def of_users(served: ServedModel, checkpoint_seed: int) -> tuple[list[KVState], list[int]]:
    """Three users, of whom the second has an item that is not finite among its new events."""
    checkpoint = small_checkpoint(dtype=torch.float32, seed=checkpoint_seed)
    histories = [random_events(length, seed=length) for length in (3, 20, 11)]
    bad = int(checkpoint.items.item_id[0])
    for events in histories:
        events["item_id"][events["item_id"] == bad] = int(checkpoint.items.item_id[1])
    histories[1]["item_id"][-1] = bad
    states = [prefill(served, tokens(checkpoint, events[:-2])) for events in histories]
    grown = append_all(served, states, [tokens(checkpoint, events[-2:]) for events in histories])
    return grown, [state.num_tokens for state in states]


@pytest.mark.parametrize("with_budget", [False, True])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_only_the_user_whose_it_is(backend: str, with_budget: bool) -> None:
    model = small_checkpoint(dtype=torch.float32).model
    model.items.id.weight[1] = float("nan")
    served = serve(model, backend, BUDGET if with_budget else None)
    with torch.inference_mode():
        states, firsts = of_users(served, 0)
        assert finiteness(states, firsts)() == [True, False, True]
        assert finiteness(states, [state.num_tokens for state in states])() == [True, True, True]
        assert finiteness([], [])() == []


def test_what_stands_behind_a_state_on_its_page_is_not_looked_at() -> None:
    """A longer state of the same lineage has NaN there."""
    checkpoint = small_checkpoint(dtype=torch.float32)
    for served in (reference(checkpoint.model), serve(checkpoint.model), serve(checkpoint.model, budget=BUDGET)):
        state = prefill(served, tokens(checkpoint, random_events(5)))
        longer = state.extend(torch.zeros(3, dtype=torch.int64))
        for layer in range(2):
            longer.write(layer, torch.full((2, 3, 4), float("nan")), torch.full((2, 3, 7), float("nan")))
        assert finiteness([state, longer], [0, 0])() == [True, False]
        assert finiteness([longer], [5])() == [False]


class Launches(TorchDispatchMode):
    """Operators that a device would be given: those that are no views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("v_dim", [8, 16])
@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_device_is_given_two_operators(dtype: torch.dtype, codes: torch.dtype | None, v_dim: int) -> None:
    """Beside one copy, however many users there are; two more where heads of keys and of values differ. There were 37
    of these three users, a few of them on the host.
    """
    layout = PlainLayout(KVShape(2, 3, 8, v_dim, dtype, torch.device("cpu")), 16, codes)
    pool, lens, firsts = KVPool(layout, 9), (40, 5, 17), (38, 0, 16)
    states = [pool.empty().grown(num) for num in lens]
    pool.slab.fill_(255)  # NaN in every type
    for state, first in zip(states, firsts, strict=True):
        _write(state, first, torch.ones(3, state.num_tokens - first, 8 + v_dim).to(dtype))
    with Launches() as launches:
        finite = finiteness(states, firsts)
    times = 2 if codes is None and v_dim != 8 else 1
    assert launches.names == ["aten::index.Tensor", "aten::linalg_vector_norm"] * times
    assert finite() == [True] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_number_spoils_its_state_alone(dtype: torch.dtype, codes: torch.dtype | None, bad: float) -> None:
    """Wherever it stands, among the largest numbers that there are."""
    for v_dim in (8, 16):
        layout = PlainLayout(KVShape(2, 3, 8, v_dim, dtype, torch.device("cpu")), 16, codes)
        most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)  # a scale is float32
        for token, head, number in ((0, 0, 0), (4, 2, 7), (1, 1, 8), (3, 2, 7 + v_dim)):
            pool = KVPool(layout, 9)
            states = [pool.empty().grown(20) for _ in range(3)]
            for index, state in enumerate(states):
                numbers = torch.full((3, 5, 8 + v_dim), -most, dtype=dtype)
                if index == 1:
                    numbers[head, token, number] = bad
                _write(state, 15, numbers)
            assert finiteness(states, [15] * 3)() == [True, False, True]
            assert finiteness(states, [15, 16 + token, 15])() == [True, True, True]


def _write(state: KVState, first: int, numbers: torch.Tensor) -> None:
    """Keys and values [num_heads, num_tokens - first, 8 + v_dim] of the last layer."""
    pages, layout = state.pages, state.pool.layout
    layout.write(pages, 1, first, numbers[..., :8], numbers[..., 8:])
