"""What a server logs: its form, and what it says when it starts."""

import asyncio
import contextlib
import errno
import io
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from mfalcon.models import checkpoint
from server import banner
from server.addresses import Addresses
from server.config import load_config
from server.logs import SELDOM_SECONDS, JsonFormatter, Seldom, StderrHandler, TextFormatter, is_news
from tests.server.fake_engine import MODEL
from tests.small import small_checkpoint

ROOT = Path(__file__).parents[2]


def failed(message: str) -> logging.LogRecord:
    try:
        raise ZeroDivisionError("cause")
    except ZeroDivisionError:
        return logging.LogRecord("server.app", logging.ERROR, __file__, 1, message, (), sys.exc_info())


def test_text_has_time_and_level() -> None:
    first, *rest = TextFormatter().format(failed("it failed")).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR server\.app: it failed", first)
    assert rest[-1] == "ZeroDivisionError: cause"


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(failed("it\nfailed"))
    content = orjson.loads(line)
    assert "\n" not in line
    assert content["time"].endswith("Z")
    assert (content["level"], content["logger"], content["message"]) == ("ERROR", "server.app", "it\nfailed")
    assert content["error"].endswith("ZeroDivisionError: cause")


def test_json_of_what_is_no_text() -> None:
    assert orjson.loads(JsonFormatter().format(failed("\ud800")))["message"] == "?"


def test_a_caller_that_left_is_no_news_but_any_other_failure_is() -> None:
    def record(logger: str, error: str) -> logging.LogRecord:
        kind = type(error, (Exception,), {})
        return logging.LogRecord(logger, logging.ERROR, __file__, 1, "raised in core", (), (kind, kind(), None))

    of_grpc = "grpc._cython.cygrpc"
    assert not is_news(record(of_grpc, "ExecuteBatchError"))
    assert is_news(record(of_grpc, "UsageError")) and is_news(record("server.grpc.edge", "ExecuteBatchError"))
    assert is_news(failed("it failed"))


def test_what_many_requests_cause_is_written_once_in_a_while() -> None:
    def record(message: str, after_s: float, *, seldom: bool = True) -> logging.LogRecord:
        made = logging.LogRecord("server.app", logging.WARNING, __file__, 1, message, (), None)
        made.created, made.seldom = 1e9 + after_s, seldom
        return made

    keeps = Seldom().filter
    assert [keeps(record("full", after)) for after in (0, 1, SELDOM_SECONDS - 1)] == [True, False, False]
    assert keeps(record("short of memory", 1))
    assert keeps(record("full", SELDOM_SECONDS + 0.1)) and not keeps(record("full", SELDOM_SECONDS + 1))
    assert keeps(record("full", SELDOM_SECONDS + 1, seldom=False))


def test_the_banner_names_what_an_operator_asks() -> None:
    config = load_config(None, {"checkpoint": "models/dfgr", "redis_url": "redis://:pw@h:1/2"})
    told = "\n".join(
        (
            *banner.of_settings(config, "redis://h:1/2", Addresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")),
            *banner.of_model(MODEL, ("x: y",)),
        )
    )
    for part in (
        "models/dfgr",
        "grpc 127.0.0.1:1",
        "http 127.0.0.1:2, metrics 127.0.0.1:3",
        "16384 candidates",
        "event log: in Redis",
    ):
        assert part in told
    for part in (
        "redis://h:1/2",
        "model fake: version 5f0c",
        "dfgr",
        "computed by cpu float32; not by x: y",
        "refuse while it cannot",
    ):
        assert part in told
    assert "pw" not in told


def test_the_banner_says_how_callers_are_known(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = str(tmp_path / "file")
    jwt = {"jwks_file": file, "jwt_issuer": "i", "jwt_audience": "a"}
    tls = {"tls_cert_file": file, "tls_key_file": file}
    optional = {**tls, "tls_client_ca_file": file, "tls_client_certs": "optional"}
    for settings, told in (
        ({"tokens_file": file}, "in clear; callers are known by tokens"),
        (jwt, "in clear; callers are known by JWTs"),
        (tls | {"tokens_file": file} | jwt, "TLS; callers are known by tokens, JWTs"),
        (optional | {"tokens_file": file}, "TLS, clients' certificates optional; callers are known by tokens"),
        (
            {**tls, "tls_client_ca_file": file},
            "TLS, clients' certificates required; whoever has one may rank, append, read and delete",
        ),
        ({}, "in clear; everybody on this machine may rank, append, read and delete"),
        (optional, "TLS, clients' certificates optional; everybody on this machine may rank, append, read and delete"),
    ):
        config = load_config(None, {"checkpoint": "models/dfgr"} | settings)
        assert f"access: {told}" in banner.of_settings(config, None, Addresses("127.0.0.1:1", "127.0.0.1:2"))


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_real_start_is_told(tmp_path: Path, log_format: str) -> None:
    loaded = small_checkpoint()
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    flags = ("--checkpoint", str(tmp_path / "small"), "--grpc-port", "0", "--http-port", "0", "--threads", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mfalcon.cli", "serve", *flags, "--microbatch", "8", "--log-format", log_format),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert (await process.stdout.readline()).startswith(b"ready grpc=")
        process.send_signal(signal.SIGTERM)
        _, told = await process.communicate()
    lines = told.decode().splitlines()
    assert 7 <= len(lines) <= 12
    if log_format == "json":
        assert {orjson.loads(line)["level"] for line in lines} == {"INFO"}
    for part in (
        "small",
        "limits: ",
        "redis: none",
        "computed by cpu float32",
        "1 threads, microbatch 8",
        "MiB of pages",
    ):
        assert part in told.decode()


@pytest.fixture
def full_disk() -> Iterator[int]:
    """A file of which every write fails."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def answers(port: int, path: str) -> None:
    """Wait until a server answers well: it has nowhere to say that it is ready."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(path)).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def started(port: int, build: str, stdout: int, stderr: int) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "tests.server.serve_fake", build, str(port))
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}  # fails once more, late
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=stdout, stderr=stderr, env=buffered)


@pytest.mark.parametrize(("build", "path"), [("quick", "/readyz"), ("endless", "/livez")])
async def test_a_full_disk_ends_no_server(full_disk: int, build: str, path: str) -> None:
    """Neither while it loads nor while it serves; a signal ends it, with exit code 0."""
    port = free_port()
    process = await started(port, build, full_disk, full_disk)
    async with asyncio.timeout(120):
        await answers(port, path)
        process.send_signal(signal.SIGHUP)  # is logged: as a failed reload, or as too early
        await asyncio.sleep(0.2)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_checkpoint_that_cannot_be_loaded_is_exit_code_1_on_a_full_disk_too(full_disk: int) -> None:
    process = await started(0, "broken", full_disk, full_disk)
    async with asyncio.timeout(120):
        assert await process.wait() == 1


class Sometimes(io.StringIO):
    """A disk that is full for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_goes_on_when_there_is_room_again(capsys: pytest.CaptureFixture[str]) -> None:
    disk = Sometimes()
    handler = StderrHandler(disk)
    handler.handle(failed("lost"))
    disk.full = False
    handler.handle(failed("written"))
    assert disk.getvalue().startswith("written")
    assert capsys.readouterr().err == ""


def test_a_mistake_in_a_log_call_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("server.app", logging.ERROR, __file__, 1, "%d", ("no number",), None)
    StderrHandler(io.StringIO()).handle(record)
    assert "TypeError" in capsys.readouterr().err
