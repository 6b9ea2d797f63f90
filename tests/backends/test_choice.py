"""Which backend computes: the fastest that is right, with reasons for the others; one that is asked for, or none."""

from pathlib import Path

import pytest
import torch

from kernels.cpu import build_library, check, library
from kernels.cpu.library import FusedUnavailable
from mfalcon.backends import choice
from mfalcon.backends.choice import AUTO, NAMES, ON_DEVICE, REFERENCE, BackendUnavailable, choose, runnable

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def is_compiled() -> bool:
    return any(name not in ("portable_f32", "portable_bf16") for name in library.available())


@pytest.fixture
def without_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(policy: str) -> library.Kernel:
        raise FusedUnavailable(f"fused kernel {policy}: not compiled")

    monkeypatch.setattr(check, "load", load)


def test_auto_takes_what_was_compiled_for_this_processor() -> None:
    if not is_compiled():
        pytest.skip("no C++ compiler when this was installed")
    found = choose(AUTO, CPU, torch.float32)
    assert found.kernel is not None and found.name == found.kernel.policy.name
    assert build_library.POLICIES[found.name].element == "float32"
    better = list(build_library.POLICIES)[: list(build_library.POLICIES).index(found.name)]
    wanted = [name for name in better if build_library.POLICIES[name].element == "float32"]
    assert [why.split(":")[0].split()[-1] for why in found.unavailable] == wanted
    assert choose("fused", CPU, torch.float32).name == found.name


@pytest.mark.usefixtures("without_compiled")
def test_without_a_compiler_the_reference_and_why() -> None:
    found = choose(AUTO, CPU, torch.float32)
    assert found.name == REFERENCE and found.kernel is None
    assert found.unavailable and all("not compiled" in why for why in found.unavailable)


@pytest.mark.usefixtures("without_compiled")
@pytest.mark.parametrize("asked", ["fused", "avx2_f32", "portable_f32"])
def test_what_is_asked_for_is_never_replaced(asked: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"backend {asked}: .*not compiled"):
        choose(asked, CPU, torch.float32)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "match"),
    [
        ("avx2", CPU, torch.float32, "got 'avx2', must be one of auto, reference"),
        ("avx2_f32", CPU, torch.bfloat16, "computes in float32, not in torch.bfloat16"),
        ("portable_bf16", CPU, torch.float32, "computes in bfloat16, not in torch.float32"),
        ("fused", CPU, torch.float64, "backend fused: no compiled kernel computes in torch.float64"),
        ("avx2_f32", CPU, torch.float64, "float32 or bfloat16, not in torch.float64"),
        ("avx2_f32", torch.device("cuda"), torch.float32, "on the CPU, not on cuda"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    asked: str, device: torch.device, dtype: torch.dtype, match: str
) -> None:
    with pytest.raises(BackendUnavailable, match=match):
        choose(asked, device, dtype)


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_always_there(device: torch.device, dtype: torch.dtype) -> None:
    assert choose(REFERENCE, device, dtype) == choice.Choice(REFERENCE)
    assert runnable(device, dtype)[-1].name == REFERENCE
    assert choose(AUTO, device, dtype).name in [found.name for found in runnable(device, dtype)]


def test_every_policy_has_a_name() -> None:
    assert {*build_library.POLICIES, AUTO, REFERENCE, *ON_DEVICE, "fused"} == set(NAMES)


def test_a_library_that_cannot_be_loaded_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where libgomp is missing, or a tree was carried to an older system."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(build_library, "library_path", lambda *_: broken)
    found = choose(AUTO, CPU, torch.float32)
    assert found.kernel is None
    assert any("cannot be loaded" in why for why in found.unavailable)


def test_a_policy_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_library, "cpu_flags", frozenset)
    with pytest.raises(BackendUnavailable, match=r"avx2_f32: this processor lacks avx2, fma"):
        choose("avx2_f32", CPU, torch.float32)
