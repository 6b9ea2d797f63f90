"""A layout of pages is a matter of sizes: two checkpoints of one configuration have equal ones, and read each other's
pages.
"""

from dataclasses import replace

import pytest
import torch

from mfalcon.backends.choice import REFERENCE, runnable
from mfalcon.backends.select import ServedModel, serve
from mfalcon.kvcache.state import PlainLayout
from tests.device import needs_interpreter
from tests.small import small_checkpoint, small_config

CPU = torch.device("cpu")
BACKENDS = [
    *((choice.name, kv_dtype) for choice in runnable(CPU, torch.float32) for kv_dtype in ("auto", "int8")),
    pytest.param("triton", "auto", marks=needs_interpreter),
    pytest.param("triton", "int8", marks=needs_interpreter),
]


def served(backend: str, kv_dtype: str, seed: int = 1, num_layers: int = 2) -> ServedModel:
    model = small_checkpoint("dfgr", torch.float32, seed, small_config(num_layers=num_layers)).model
    return serve(model, backend, kv_dtype=kv_dtype)


@pytest.mark.parametrize(("backend", "kv_dtype"), BACKENDS)
def test_another_checkpoint_of_the_same_sizes_has_an_equal_layout(backend: str, kv_dtype: str) -> None:
    if (backend, kv_dtype) == (REFERENCE, "int8"):
        pytest.skip("has no such pages")
    first, second, larger = (
        served(backend, kv_dtype),
        served(backend, kv_dtype, 2),
        served(backend, kv_dtype, num_layers=3),
    )
    layout, other = first.stack.layout, second.stack.layout
    assert layout == other and hash(layout) == hash(other) and layout is not other
    assert layout.page_bytes == other.page_bytes
    assert layout != larger.stack.layout


def test_pages_written_by_one_are_read_by_the_other() -> None:
    first, second = served("auto", "auto"), served("auto", "auto", 2)
    state = first.empty_state().extend(torch.arange(130))
    shape = state.pool.layout.shape
    k, v = (torch.randn(shape.num_heads, 130, dim) for dim in (shape.qk_dim, shape.v_dim))
    for layer in range(shape.num_layers):
        state.write(layer, k, v)
        for written, read in zip((k, v), second.stack.layout.read(state.pages, layer, 0, 130), strict=True):
            assert torch.equal(written, read)


@pytest.mark.parametrize("name", ["num_layers", "num_heads", "qk_dim", "v_dim"])
def test_every_size_counts(name: str) -> None:
    layout = served(REFERENCE, "auto").stack.layout
    assert isinstance(layout, PlainLayout)
    assert layout == replace(layout)
    assert layout != replace(layout, shape=replace(layout.shape, **{name: 1 + getattr(layout.shape, name)}))
    assert layout != replace(layout, codes=torch.int8) and layout != replace(layout, page_tokens=64)
