"""What travels beside the message, and over what."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider

from mfalcon.rank_key import rank_key as servers_key
from mfalcon_client import AccessDenied, Client, InvalidArgument, Tls, TokenFile, Unavailable, rank_key
from mfalcon_client.connection import Connection
from tests.client.either import MakeClient
from tests.client.scripted import RANKED, Scripted, fails, raw, running, says, scripted
from tests.client.test_retries import QUICK

CLIENT = Path(__file__).parents[2] / "client"


async def test_calls_for_a_user_carry_the_key_of_the_contract(make: MakeClient) -> None:
    with scripted(says(RANKED), raw(b"")) as script:
        async with make(script.address) as client:
            await client.rank("jürgen", [1, 2])
            await client.get_model()
    assert script.asked[0].metadata["x-rank-key"] == rank_key("jürgen") == servers_key("jürgen")
    assert "x-rank-key" not in script.asked[1].metadata
    assert str(script.asked[0].metadata["user-agent"]).startswith("mfalcon-client/")


async def test_a_token_is_asked_for_before_each_attempt(make: MakeClient) -> None:
    tokens = iter(["old", "new"])
    with scripted(fails("UNAVAILABLE"), says(RANKED)) as script:
        async with make(script.address, token=lambda: next(tokens), token_in_clear=True, retry=QUICK) as client:
            await client.rank("ann", [1, 2])
    assert [asked.metadata["authorization"] for asked in script.asked] == ["Bearer old", "Bearer new"]


async def test_a_refused_token_is_an_error_of_its_own(make: MakeClient) -> None:
    with scripted(fails("UNAUTHENTICATED")) as script:
        async with make(script.address, token="wrong", token_in_clear=True) as client:
            with pytest.raises(AccessDenied):
                await client.rank("ann", [1, 2])
    assert len(script.asked) == 1


async def test_a_token_does_not_travel_in_clear_unasked(make: MakeClient) -> None:
    with pytest.raises(ValueError, match="without tls"):
        make("127.0.0.1:1", token="secret")
    async with make("127.0.0.1:1", token="secret\n", token_in_clear=True) as client:
        with pytest.raises(InvalidArgument) as failure:
            await client.rank("ann", [1, 2])
        assert "secret" not in str(failure.value)


async def test_a_token_in_a_file_may_be_another_tomorrow(make: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = TokenFile(path)
    with scripted(says(RANKED), says(RANKED)) as script:
        async with make(script.address, token=token, token_in_clear=True) as client:
            for text, says_why in ((None, "cannot read"), ("\n", "is empty"), ("tökén", "must hold printable ASCII")):
                if text is not None:
                    path.write_text(text)
                with pytest.raises(InvalidArgument, match=says_why):
                    await client.rank("ann", [1, 2])
            path.write_text("first-secret\n")
            await client.rank("ann", [1, 2])
            (tmp_path / "next").write_text("second-secret")
            (tmp_path / "next").replace(path)
            await client.rank("ann", [1, 2])
    sent = [asked.metadata["authorization"] for asked in script.asked]
    assert sent == ["Bearer first-secret", "Bearer second-secret"]
    assert "secret" not in repr(token)


def test_no_representation_shows_a_token() -> None:
    connection = Connection("h:1", None, "my-secret", True, "first")
    assert "my-secret" not in repr(connection) and "my-secret" not in f"{connection}"


async def test_the_callers_trace_travels(make: MakeClient) -> None:
    tracer = TracerProvider().get_tracer("test")
    with scripted(says(RANKED)) as script:
        async with make(script.address) as client:
            with tracer.start_as_current_span("page") as span:
                await client.rank("ann", [1, 2])
            await client.rank("ann", [1, 2])
    inside, outside = script.asked
    assert f"{span.get_span_context().trace_id:032x}" in str(inside.metadata["traceparent"])
    assert "traceparent" not in outside.metadata


@pytest.mark.parametrize(
    ("target", "why"), [([], "at least one"), (["a:1", "b:2"], "dns:///"), (["1.2.3.4:5", "[::1]:5"], "one family")]
)
def test_addresses_that_gRPC_cannot_take(target: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Client(target)


async def test_several_servers_are_asked_in_turn(make: MakeClient) -> None:
    with scripted(says(RANKED)) as first, scripted(says(RANKED)) as second:
        async with make([first.address, second.address], spread="turn") as client:
            while not (first.asked and second.asked):
                await client.rank("ann", [1, 2])


async def test_one_of_several_that_is_gone_is_not_missed(make: MakeClient) -> None:
    with scripted(says(RANKED)) as gone:
        pass
    with scripted(says(RANKED)) as there:
        for spread in ("first", "turn", "user"):
            async with make([gone.address, there.address], spread=spread) as client:
                for _ in range(5):
                    await client.rank("ann", [1, 2])
    assert len(there.asked) == 15


async def test_a_user_stays_on_one_server_and_moves_only_when_it_is_gone(make: MakeClient) -> None:
    scripts = [Scripted([says(RANKED)]) for _ in range(3)]
    users = [f"user-{number}" for number in range(60)]

    def owners() -> dict[str, list[int]]:
        asked = [{call.metadata["x-rank-key"] for call in script.asked} for script in scripts]
        return {user: [n for n, keys in enumerate(asked) if rank_key(user) in keys] for user in users}

    with contextlib.ExitStack() as two, contextlib.ExitStack() as one:
        for script, stack in zip(scripts, (one, two, two), strict=True):
            stack.enter_context(running(script, "127.0.0.1:0"))
        async with make([script.address for script in scripts], spread="user") as client:
            for user in users * 2:
                await client.rank(user, [1, 2])
            before = owners()
            assert all(len(servers) == 1 for servers in before.values())
            assert all(script.asked for script in scripts)
            one.close()
            for script in scripts:
                script.asked.clear()
            for user in users:
                await client.rank(user, [1, 2])
            after = owners()
            assert all(after[user] == before[user] for user in users if before[user] != [0])
            assert all(after[user] in ([1], [2]) for user in users)


async def test_a_spread_that_there_is_not(make: MakeClient) -> None:
    with pytest.raises(ValueError, match="'first', 'turn', 'user'"):
        make("127.0.0.1:1", spread=True)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A key and a certificate that it signed itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("pem")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=ranker.test", "-addext", "subjectAltName=DNS:ranker.test"]
    out = ["-keyout", str(folder / "key"), "-out", str(folder / "chain")]
    subprocess.run([openssl, *made, *names, *out], check=True, capture_output=True, timeout=60)
    return {name: (folder / name).read_bytes() for name in ("key", "chain")}


def mutual(pem: dict[str, bytes], *, asks_client: bool) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(pem["key"], pem["chain"])], pem["chain"], asks_client)


async def test_tls_with_a_certificate_of_ones_own(make: MakeClient, pem: dict[str, bytes]) -> None:
    trusted = Tls(root_certificates=pem["chain"], server_name="ranker.test")
    script = Scripted([says(RANKED)])
    with running(script, "127.0.0.1:0", mutual(pem, asks_client=False)):
        async with make(script.address, tls=trusted, token="secret") as client:
            assert (await client.rank("ann", [1, 2])).num_scored == 2
        assert script.asked[0].metadata["authorization"] == "Bearer secret"
        strangers: list[dict[str, Any]] = [{}, {"tls": Tls()}, {"tls": Tls(root_certificates=pem["chain"])}]
        for stranger in strangers:
            async with make(script.address, retry=QUICK, **stranger) as client:
                with pytest.raises(Unavailable):
                    await client.rank("ann", [1, 2])
    assert len(script.asked) == 1


async def test_tls_with_a_certificate_of_the_clients(make: MakeClient, pem: dict[str, bytes]) -> None:
    script = Scripted([says(RANKED)])
    with running(script, "127.0.0.1:0", mutual(pem, asks_client=True)):
        own = Tls(pem["chain"], pem["key"], pem["chain"], "ranker.test")
        async with make(script.address, tls=own) as client:
            await client.rank("ann", [1, 2])
        async with make(script.address, tls=Tls(pem["chain"], server_name="ranker.test"), retry=QUICK) as client:
            with pytest.raises(Unavailable):
                await client.rank("ann", [1, 2])
    assert "PRIVATE" not in repr(own)
    with pytest.raises(ValueError, match="both or none"):
        Tls(private_key=pem["key"])


def test_a_fork_is_told_that_it_needs_a_client_of_its_own() -> None:
    code = (
        "import os, mfalcon_client\n"
        "client = mfalcon_client.Client('127.0.0.1:1')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try: client.rank('ann', [1, 2])\n"
        "    except mfalcon_client.ClientError as error: os._exit(42 if 'fork' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CLIENT, check=True, timeout=120)
