"""A checkpoint exchanged under a running server: by the Admin call, by a change of the directory, by SIGHUP's way."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest

from loadtest.faults.bad_checkpoints import KINDS, UNSOUND
from mfalcon.errors import CheckpointError, Overloaded
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models import checkpoint
from mfalcon.types import ModelInfo
from proto import ranking_pb2, ranking_pb2_grpc
from server.app import build_engine
from server.config import load_config
from server.reload import Reloads, mark_of
from server.service import Service
from tests.server.fake_engine import MODEL
from tests.small import small_checkpoint

WAIT_S = 60.0


def save(directory: Path, seed: int) -> str:
    made = small_checkpoint(seed=seed)
    return checkpoint.save(directory, made.model, made.items)[:12]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Running:
    def __init__(self, service: Service, http: httpx.AsyncClient, admin: ranking_pb2_grpc.AdminStub) -> None:
        self.service, self.http, self.admin = service, http, admin

    async def versions(self) -> dict[str, str]:
        models = (await self.http.get("/v1/models")).json()["models"]
        return {model["name"]: model["version"] for model in models}

    async def comes(self, name: str, version: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while (await self.versions())[name] != version:  # noqa: ASYNC110 (a client sees it no sooner)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(tmp_path: Path, text: str, **flags: object) -> AsyncIterator[Running]:
    """A real server, configured by a file."""
    port = free_port()
    file = tmp_path / "server.toml"
    file.write_text(f"grpc_port = 0\nhttp_port = 0\nadmin_port = {port}\nthreads = 1\nmicrobatch = 16\n{text}")
    config, metrics = load_config(file, flags), ServerMetrics()
    service = Service(config, metrics)
    addresses = await service.listen()
    await service.serve(await asyncio.to_thread(build_engine, config, metrics))
    try:
        async with (
            httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            yield Running(service, http, ranking_pb2_grpc.AdminStub(channel))
    finally:
        await service.stop()


async def test_admin_reloads_one_of_two_models_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 1), save(tmp_path / "two", 2)
    three = save(tmp_path / "three", 3)
    (tmp_path / "bad").mkdir()
    tables = "".join(f'[[models]]\nname = "{name}"\ncheckpoint = "{tmp_path / name}"\n' for name in ("one", "two"))
    async with serving(tmp_path, tables) as running:
        assert await running.versions() == {"one": one, "two": two}
        asked = ranking_pb2.ReloadRequest(model="two", checkpoint=str(tmp_path / "three"))
        done = await running.admin.Reload(asked)
        assert (done.model, done.old_version, done.version) == ("two", two, three)
        assert await running.versions() == {"one": one, "two": three}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.admin.Reload(ranking_pb2.ReloadRequest(checkpoint=str(tmp_path / "bad")))
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "manifest.json: no such file" in (error.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.admin.Reload(ranking_pb2.ReloadRequest(model="three"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        ranked = await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1, 2], "model": "two"})
        assert ranked.json()["model_version"] == three
        assert await running.versions() == {"one": one, "two": three}


async def test_every_kind_of_bad_checkpoint_leaves_the_old_one_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason names file and cause, in the answer and in the log."""
    version, next_one = save(tmp_path / "v0", 0), tmp_path / "next" / "model"
    cases = [(damage, str(next_one / file), cause) for damage, file, cause in KINDS]
    cases += [(damage, "small: ", cause) for damage, cause in UNSOUND]
    question = {"user_id": "ann", "candidates": [1, 2, 3], "request_time_ms": 1}
    async with serving(tmp_path, f'checkpoint = "{tmp_path / "v0"}"\nmodel_name = "main"') as running:
        before = (await running.http.post("/v1/rank", json=question)).json()
        for damage, place, cause in cases:
            shutil.rmtree(next_one.parent, ignore_errors=True)
            save(next_one, 1)
            damage(next_one)
            caplog.clear()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await running.admin.Reload(ranking_pb2.ReloadRequest(checkpoint=str(next_one)))
            why = error.value.details() or ""
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION, damage
            assert place in why and cause in why, damage
            assert why in caplog.text
            after = (await running.http.post("/v1/rank", json=question)).json()
            assert (after["model_version"], after["scores"]) == (version, before["scores"])
        metrics = (await running.http.get("/metrics")).text
        assert f'mfalcon_reloads_total{{model="main",result="failed"}} {len(cases)}.0' in metrics
        save(tmp_path / "good", 1)
        await running.admin.Reload(ranking_pb2.ReloadRequest(checkpoint=str(tmp_path / "good")))


async def test_a_changed_symlink_or_manifest_is_a_reload_and_a_bad_one_is_not(tmp_path: Path) -> None:
    versions = [save(tmp_path / f"v{number}", number) for number in range(3)]
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "v0")

    def point_to(target: Path) -> None:
        (tmp_path / "next").symlink_to(target)
        os.replace(tmp_path / "next", link)

    async with serving(tmp_path, f'checkpoint = "{link}"\nmodel_name = "main"\nwatch_seconds = 0.05\n') as running:
        assert await running.versions() == {"main": versions[0]}
        point_to(tmp_path / "v1")
        await running.comes("main", versions[1])
        bad = tmp_path / "bad"
        save(bad, 5)
        weights = (bad / "model.safetensors").read_bytes()
        (bad / "model.safetensors").write_bytes(weights[:-1])
        point_to(bad)
        await asyncio.sleep(0.5)
        assert await running.versions() == {"main": versions[1]}
        point_to(tmp_path / "v2")
        await running.comes("main", versions[2])


async def test_a_hangup_reloads_from_the_directory(tmp_path: Path) -> None:
    first = save(tmp_path / "model", 1)
    async with serving(tmp_path, f'checkpoint = "{tmp_path / "model"}"\nmodel_name = "main"\n') as running:
        assert await running.versions() == {"main": first}
        second = save(tmp_path / "model", 2)
        running.service.hang_up()
        await running.comes("main", second)


class Exchanges:
    """An engine's part of `Reloads`: what it raises, in turn."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes, self.count = list(outcomes), 0

    async def exchange(self, model: str, load: Callable[[], int]) -> ModelInfo:
        self.count += 1
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not None:
            raise outcome
        return MODEL

    async def reaches(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.count < count:  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert self.count == count


def reloads_of(directory: Path, exchanges: Exchanges) -> Reloads[int]:
    directories, marks = {MODEL.name: directory}, {directory: mark_of(directory)}
    return Reloads(directories, marks, lambda _: 0, exchanges.exchange, lambda: (MODEL,))


@pytest.mark.parametrize(
    ("first", "attempts"),
    [
        (RuntimeError("out of memory"), None),
        (Overloaded("is being reloaded"), 2),
        (CheckpointError("bad"), 1),
        (None, 1),
    ],
)
async def test_the_watch_goes_on_whatever_a_change_does(
    tmp_path: Path, first: Exception | None, attempts: int | None
) -> None:
    """What may succeed later is tried again; what is bad is not, until it changes."""
    manifest, exchanges = tmp_path / "manifest.json", Exchanges(first)
    manifest.write_text("one")
    reloads = reloads_of(tmp_path, exchanges)
    manifest.write_text("two")  # before the watch begins
    watching = asyncio.create_task(reloads.watch(0.01))
    await exchanges.reaches(attempts or 2)
    manifest.write_text("three")
    await exchanges.reaches((attempts or 2) + 1)
    watching.cancel()


async def test_hangups_while_it_reloads_are_one_reload_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The directory may have changed after it was read."""
    exchanges, gate = Exchanges(), asyncio.Event()

    async def exchange(model: str, load: Callable[[], int]) -> ModelInfo:
        await gate.wait()
        return await exchanges.exchange(model, load)

    reloads = Reloads({MODEL.name: tmp_path}, {tmp_path: None}, lambda _: 0, exchange, lambda: (MODEL,))
    asked = [asyncio.create_task(reloads.reload_all()) for _ in range(9)]
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*asked)
    await exchanges.reaches(2)
    await reloads.reload_all()
    await exchanges.reaches(3)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_admin_reload_is_not_repeated_by_the_watch(tmp_path: Path) -> None:
    other, exchanges = tmp_path / "other", Exchanges()
    other.mkdir()
    (tmp_path / "manifest.json").write_text("one")
    (other / "manifest.json").write_text("two")
    reloads = reloads_of(tmp_path, exchanges)
    watching = asyncio.create_task(reloads.watch(0.01))
    await reloads.reload(checkpoint=str(other))
    await exchanges.reaches(1)
    watching.cancel()
