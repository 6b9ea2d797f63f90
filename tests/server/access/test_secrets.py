"""No secret is ever printed: not in a log at its loudest, an answer, a metric, a document or an error."""

import asyncio
import os
import re
import ssl
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest

from mfalcon.cli.serve import read_settings
from mfalcon.errors import MFalconError
from mfalcon.models import checkpoint
from proto import ranking_pb2_grpc
from server.config import load_config
from tests.certificates import LOCAL
from tests.certificates import signed as signed_certificate
from tests.server.access.credentials import CALLS, access_of, bearer, by_grpc, table, token, written
from tests.server.access.jwt_makers import AUDIENCE, ISSUER, jwks, private_keys, public_key, signed
from tests.server.harness import FREE_PORTS, Clients
from tests.small import small_checkpoint

ROOT = Path(__file__).parents[3]
LOUD = """
import logging
import server.app as app
quiet = app.log_to_stderr
def loud(*words, **named):
    quiet(*words, **named)
    for name in ("", "server", "mfalcon", "uvicorn", "redis", "grpc", "asyncio", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.DEBUG)
app.log_to_stderr = loud
from mfalcon.cli.main import main
main()
"""
"""`mfalcon serve` with every logger at its loudest."""
PATHS = ("/metrics", "/openapi.json", "/docs", "/", "/nowhere", "/v1/model", "/v1/users/a/history")
PASSWORD, USER = "redis-pass-4711", "redis-user-0815"


def secret_files(directory: Path) -> dict[str, str]:
    """Settings of files with secrets, each by its own text."""
    texts = {
        "redis_secret_file": "signs-logs-with-this-0123456789",
        "redis_former_secret_file": "signed-logs-before-0123456789",
        "llm_key_file": "sk-language-model-0123456789",
        "log_key_file": "names-users-by-this-0123456789abcdef",
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    return texts


def shown(words: str, secrets: Mapping[str, str]) -> list[str]:
    """The names of the secrets of which a text holds twelve characters in a row."""
    return [
        name
        for name, secret in secrets.items()
        if any(secret[start : start + 12] in words for start in range(max(1, len(secret) - 11)))
    ]


async def gather(stream: asyncio.StreamReader, into: bytearray) -> bytearray:
    """Read to the end; what there is so far stands in `into`, which is returned."""
    while part := await stream.read(1 << 16):
        into.extend(part)
    return into


@pytest.mark.slow
async def test_a_server_at_its_loudest_shows_none(tmp_path: Path) -> None:
    made = small_checkpoint()
    checkpoint.save(tmp_path / "model", made.model, made.items)
    secrets = secret_files(tmp_path) | {"password": PASSWORD, "user": USER}
    good, wrong = token("rank"), "mfk_wrong-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    jwts = {"jwt": signed(), "expired": signed(exp=1), "other": signed(aud="other")}
    secrets |= {"token": good, "wrong": wrong, "old": "mfk_old-ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    secrets |= {f"{name} {part}": text.split(".")[part] for name, text in jwts.items() for part in (1, 2)}
    callers = written(tmp_path / "callers.toml", table("rank", ["rank", "metrics"], [(good, None)]))
    (tmp_path / "jwks.json").write_text(jwks(*(public_key(name) for name in private_keys())))
    authority = signed_certificate("authority")
    cert, key = signed_certificate("server", authority, LOCAL).write(tmp_path, "server")
    secrets["TLS key"] = key.read_text().splitlines()[1]
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem)
    settings = {
        "tls_cert_file": cert,
        "tls_key_file": key,
        "redis_url": f"redis://{USER}:{PASSWORD}@127.0.0.1:1/0",
        "ready_without_redis": "true",
        "event_log": "memory",
        "llm_url": "http://127.0.0.1:1/v1",
        "llm_model": "m",
        "tokens_file": callers,
        "jwks_file": tmp_path / "jwks.json",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "log_format": "json",
        "frontends": 1,
        "threads": 1,
        "grpc_port": 0,
        "http_port": 0,
        "checkpoint": tmp_path / "model",
        **{name: tmp_path / name for name in secret_files(tmp_path)},
    }
    credentials = grpc.ssl_channel_credentials(authority.cert_pem)
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    environment = os.environ | {f"MFALCON_{name.upper()}": str(value) for name, value in settings.items()}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'client'}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "ignore", "-c", LOUD, "serve"),
        env=environment,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    told, written_so_far = list[str](), bytearray()
    reading = asyncio.create_task(gather(process.stderr, written_so_far))
    try:
        async with asyncio.timeout(180):
            line = (await process.stdout.readline()).decode()
            addresses = dict(word.split("=") for word in line.split()[1:])
            async with (
                grpc.aio.secure_channel(addresses["grpc"], credentials) as channel,
                httpx.AsyncClient(base_url=f"https://{addresses['http']}", verify=context, timeout=60) as http,
            ):
                clients = Clients(channel, ranking_pb2_grpc.RankingStub(channel), http)
                for text in (good, wrong, *jwts.values(), f"{good} {wrong}", good[:-1]):
                    for call in CALLS.values():
                        told += await by_grpc(clients, call, bearer(text))
                        told += await by_grpc(clients, call, bearer(text), body=b"\xff")
                    told += await by_grpc(clients, CALLS["rank"], bearer(text), bearer(wrong))
                    for path in PATHS:
                        answer = await http.get(path, headers={"authorization": bearer(text)})
                        told += [str(answer.headers), answer.text]
                    for body in (b"{", b'{"user_id": "ann", "candidates": [1], "rerank": {"method": "llm"}}'):
                        answer = await http.post("/v1/rank", content=body, headers={"authorization": bearer(text)})
                        told += [str(answer.headers), answer.text]
            written(callers, table("rank", ["rank"], []) + f'[[callers.tokens]]\nsha256 = "{secrets["old"]}"\n')
            process.send_signal(1)  # SIGHUP: a file with a token in the place of a hash
            while b"must be 64 hex digits" not in written_so_far:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.02)
            process.terminate()
            log = (await reading).decode()
            told += [line, (await process.stdout.read()).decode()]
    finally:
        if process.returncode is None:
            process.kill()
    assert '"level":"DEBUG"' in log and "must be 64 hex digits" in log  # it was loud, and saw what it should
    assert sum(text == "OK" for text in told) > 4 and "UNAUTHENTICATED" in told
    assert not shown(log, secrets)
    assert not shown("\n".join(told), secrets)


BAD_WORDS = {
    "no scheme": ["--redis-url", f"redis//{USER}:{PASSWORD}@h"],
    "a port too high": ["--redis-url", f"redis://{USER}:{PASSWORD}@h:99999/0", "--grpc-port", "70000"],
    "a mistyped flag": [f"--redis-pasword={PASSWORD}"],
    "a flag that there is not": ["--token", PASSWORD],
    "a user in the address of a language model": ["--llm-url", f"http://{USER}:{PASSWORD}@h/v1", "--llm-model", "m"],
    "a user in the address of a collector": ["--otlp-endpoint", f"http://{USER}:{PASSWORD}@h:4317"],
    "the same without a scheme": ["--otlp-endpoint", f"{USER}:{PASSWORD}@h:4317"],
    "twice": ["--redis-url", f"redis://:{PASSWORD}@h", "--redis-url", f"redis://:{PASSWORD}@g"],
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_what_is_wrong_with_settings_is_said_without_them(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {"password": PASSWORD, "user": USER}
    try:
        config = read_settings(["--checkpoint", "x", *BAD_WORDS[case]])
    except MFalconError as error:
        told = str(error)
    else:
        told = repr(config) + str(config) + config.model_dump_json()
    printed = capsys.readouterr()
    assert told and not shown(told + printed.out + printed.err, secrets)


def test_settings_and_help_show_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {"password": PASSWORD, "user": USER}
    url = f"redis://{USER}:{PASSWORD}@h"
    config = load_config(None, FREE_PORTS | {"redis_url": url})
    assert config.redis_url is not None and config.redis_url.get_secret_value() == url
    assert not shown(repr(config) + str(config) + config.model_dump_json() + str(config.model_dump()), secrets)
    monkeypatch.setenv("MFALCON_REDIS_URL", url)
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    helped = capsys.readouterr().out
    assert re.search("tokens-file", helped) and not shown(helped, secrets)


def test_a_traceback_shows_no_credential(tmp_path: Path) -> None:
    text = "mfk_in-the-place-of-a-hash-0123456789"
    bad = f'[[callers]]\nname = "a"\nrights = ["rank"]\ntokens = [{{sha256 = "{text}"}}]'
    path = written(tmp_path / "callers.toml", bad)
    access = access_of(written(tmp_path / "good.toml", table("a", ["rank"], [("x", None)])))
    for fails in (
        lambda: access_of(path),
        lambda: access.caller(f"Bearer {text}"),
        lambda: access.caller(text),
        lambda: access.caller(f"Bearer {text} {text}"),
    ):
        try:
            fails()
        except MFalconError as error:
            assert not shown("".join(traceback.format_exception(error)), {"token": text})
        else:
            raise AssertionError
