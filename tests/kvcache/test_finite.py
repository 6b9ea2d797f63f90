"""What is not finite is seen in the last layer, wherever it arose and whatever computes; of others nothing is."""

import itertools

import pytest
import torch

from mfalcon.algorithm import append_all, prefill
from mfalcon.backends.select import PoolBudget, ServedModel, reference, serve
from mfalcon.kvcache.finite import finiteness
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import Ranker
from mfalcon.models.registry import architectures
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
    for architecture, backend, how in itertools.product(architectures(), BACKENDS, hows):
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
    layer, part = model.stack.layers[int(where[0])], where[1]
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
