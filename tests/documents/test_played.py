"""The commands and programs of the pages that speak to a server, played in their order: what the README shows first,
the pages on the wire, and all of the client's README.
"""

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mfalcon_client
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.ranker import RankerOptions
from mfalcon.models.checkpoint import Checkpoint, save
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import ContextFeature
from mfalcon.models.config_layers import LayerConfig
from mfalcon.models.dfgr import DFGR
from mfalcon.models.items import ItemTable
from mfalcon.pseudonym import Pseudonyms
from mfalcon.types import ModelInfo
from mfalcon_client import Client
from tests.documents.playing import Session
from tests.documents.reading import ROOT, blocks_of, commands, commands_of
from tests.server.fake_engine import MODEL, FakeEngine
from tests.server.harness import serving_engine

ON_A_SERVER = {
    "README.md": ("First success",),
    "docs/answers.md": ("Less than all of it",),
    "docs/operations.md": ("Events as they come",),
    "docs/troubleshooting.md": ("Troubleshooting",),
    "docs/oip.md": ("In Python", "With curl"),
    "docs/wire.md": ("Python", "curl"),
}
"""Pages, and the sections of each whose blocks ask a server as the demo leaves it."""
CLIENT = "client/README.md"
STREAMS = "docs/streams.md"
OFFLINE = {"docs/observability.md": ("Users in logs",)}
"""Pages, and the sections of each whose commands ask no server."""
MADE_ELSEWHERE = ("make", "pip")
"""Programs whose commands tests/documents/runs.py has: they install, or serve what is served here already."""


def like_the_demo() -> Checkpoint:
    """A small ranker of random weights with the words of the demo's: its items, actions and context."""
    config = RankerConfig(
        name="ml-100k-dfgr",
        architecture="dfgr",
        num_layers=1,
        layer=LayerConfig(dim=16, num_heads=2, qk_dim=8, v_dim=8, attention_norm=16.0),
        actions=tuple(f"rating_{stars}" for stars in range(1, 6)),
        tasks=(Task(name="like", kind="binary", any_action=("rating_4", "rating_5")),),
        blend={"like": 1.0},
        head_dim=16,
        num_items=1_683,
        max_history=100,
        window_chunk=50,
        context_features=(
            ContextFeature(name="gender", num_values=2, values=("F", "M")),
            ContextFeature(name="hour", num_values=24, derive="hour_utc"),
        ),
    )
    torch.manual_seed(0)
    model = DFGR(config).eval().requires_grad_(False)
    items = ItemTable(np.arange(1, 1_683), tuple(f"film {item}" for item in range(1, 1_683)), {})
    model.items.load_items(items)
    return Checkpoint(model, items, "0" * 64)


@asynccontextmanager
async def demo(folder: Path) -> AsyncIterator[Session]:
    """A session in a folder that holds what `make demo` leaves, and a server of it."""
    checkpoint = like_the_demo()
    (folder / "checkpoints").mkdir()
    save(folder / "checkpoints" / "ml-100k-dfgr", checkpoint.model, checkpoint.items)
    (folder / "CHECKPOINT").symlink_to(folder / "checkpoints" / "ml-100k-dfgr")
    engine = compose(checkpoint, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, 60)
    async with serving_engine(engine) as served:
        yield Session(served.addresses.grpc, served.addresses.http)


async def test_what_is_asked_of_the_demo(ml100k_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ml-100k").symlink_to(ml100k_files)
    said: dict[str, list[str]] = {}
    async with demo(tmp_path) as session:
        for page, sections in ON_A_SERVER.items():
            for block in blocks_of(page):
                if block.section not in sections:
                    continue
                if block.language == "python":
                    await asyncio.to_thread(session.play, block)
                for command in commands(block):
                    if command.words[0] not in MADE_ELSEWHERE:
                        await asyncio.to_thread(session.run, command)
            said[page], session.said = session.said, []
    loaded, ranked, _, by_curl, _ = said["README.md"]
    assert "540 events appended" in loaded
    assert "film " in ranked and "90 encoded" in ranked
    assert "of 540 events 90" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(json.loads(by_curl)["top"]) == 3
    assert len(json.loads(said["docs/answers.md"][0])["top"]) == 2
    inspected, ready, metrics = said["docs/troubleshooting.md"]
    assert "dfgr" in inspected and "ready" in ready and "mfalcon_requests_total" in metrics
    by_triton, by_curl, *_ = said["docs/oip.md"]
    (top,) = (output["data"] for output in json.loads(by_curl)["outputs"] if output["name"] == "top")
    assert str(np.array(top)) in by_triton
    (streamed,) = (told for told in said["docs/wire.md"] if told.count("\n") == 2 and "answer" in told)
    parts, end = map(json.loads, streamed.splitlines())
    assert len(parts["scores"]) == 3 and len(end["answer"]["top"]) == 1


class OfLikes(FakeEngine):
    """Its model has the action that the page on streams writes of."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return (dataclasses.replace(MODEL, actions=("like",)),)


async def test_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own event, from a file, and from standard input in the place of what `tail` follows."""
    monkeypatch.chdir(tmp_path)
    (line,) = (block for block in blocks_of(STREAMS, "json") if block.section == "A line is an event")
    (tmp_path / "clicks.jsonl").write_text(line.text)
    from_file, _, from_tail = [command for command in commands_of(STREAMS) if command.section == "Streams of events"]
    async with serving_engine(OfLikes()) as running:
        session = Session(running.addresses.grpc, running.addresses.http)
        assert "1 event" in await asyncio.to_thread(session.run, from_file)
        with (tmp_path / "clicks.jsonl").open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert "1 event" in await asyncio.to_thread(session.run, from_tail)
        assert running.engine.histories["ann"]["item_id"].tolist() == [50, 50]  # two streams


def test_the_name_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "KEY_FILE").write_text("sixteen bytes or more")
    ((page, sections),) = OFFLINE.items()
    (block,) = (block for block in blocks_of(page, "sh") if block.section in sections)
    session = Session()
    session.play(block)
    names = Pseudonyms()
    names.use(b"sixteen bytes or more")
    assert session.said == [names.tag("USER") + "\n"]


class WithInterests(FakeEngine):
    """Serves a large user model beside its own."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return (*super().models, dataclasses.replace(MODEL, name="ml-100k-lum", conditions=("like:Comedy",)))


async def test_the_clients_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a fake engine, which has interests too: the engine is not what this page tells of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").write_bytes(b"")
    now = int(time.time() * 1000)
    messages = [
        SimpleNamespace(user_id="bob", item_id=item, time_ms=now - age, actions=1, value=2.0, name=f"topic/0/{offset}")
        for item, age, offset in ((1, 0, 7), (2, 60_000, 8), (1, 0, 7), (2, 60_000, 8))
    ]
    async with serving_engine(WithInterests()) as running:
        session = Session(running.addresses.grpc, running.addresses.http, loop=asyncio.get_running_loop())
        session.names |= vars(mfalcon_client) | {
            "asyncio": asyncio, "time": time, "now": now, "messages": messages, "Path": Path, "users": ["ann", "bob"],
            "candidates": np.arange(1, 4), "ids": np.arange(1, 4), "target": running.addresses.grpc,
            "vault": SimpleNamespace(present_token=lambda: "token"),
        }  # fmt: skip
        for block in blocks_of(CLIENT, "python"):
            with Client(running.addresses.grpc, timeout_s=60.0) as client:  # one of the blocks ends with its own
                session.names["client"] = client
                await asyncio.to_thread(session.play, block)
            if block.section == "Append events" and "for message" in block.text:
                done = session.names["done"]
                assert isinstance(done, mfalcon_client.Appended) and done.was_found and done.inserted == (0,)
                assert running.engine.histories["bob"]["item_id"].tolist() == [2, 1]
        assert running.engine.histories.get("ann") is None  # the last call of the page but two deletes her
