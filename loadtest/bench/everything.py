"""What all that secures and observes a server costs a rank: a server with everything off beside one with everything on,
asked in turns by one client each, the same requests of one user whose state is cached.
"""

import datetime
import ipaddress
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loadtest.faults.server_process import START_S, ServerProcess
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.models import checkpoint
from mfalcon.types import EVENT_DTYPE
from mfalcon_client import Client, Tls

BAR = 0.03
"""By how much the median may grow (issue on security and observability)."""
_USER = "user"
_START_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class EverythingOptions:
    """calls: of each server, after `warmup`. in_a_row: in a turn, of which there is a whole number; with 1 each call
    finds caches that hold the other server, as no server does that has its machine to itself. events: of the user's
    history. trace_sample: the part of the calls that is traced. capture_sample: of the users that are captured; of one
    that is not, each call still asks. without: settings that stay off all the same. rounds: each with two new servers,
    since two of the same settings differ by some percent for as long as they live.
    """

    candidates: int = 1_000
    calls: int = 2_000
    in_a_row: int = 25
    warmup: int = 200
    events: int = 200
    threads: int = 0
    trace_sample: float = 1.0
    capture_sample: float = 1.0
    without: tuple[str, ...] = ()
    rounds: int = 5


@dataclass(frozen=True, slots=True)
class Round:
    """p50 and p99 of a call as its client sees it, in ms."""

    off_ms: tuple[float, float]
    on_ms: tuple[float, float]

    @property
    def growth(self) -> tuple[float, float]:
        """Of both, as shares."""
        return self.on_ms[0] / self.off_ms[0] - 1, self.on_ms[1] / self.off_ms[1] - 1


@dataclass(frozen=True, slots=True)
class EverythingResult:
    """on: the settings of the servers that have everything."""

    options: EverythingOptions
    on: tuple[str, ...]
    rounds: tuple[Round, ...]
    machine: Machine
    commit: str | None

    @property
    def growth(self) -> float:
        """Of p50, as a share: the median of the rounds."""
        return statistics.median(each.growth[0] for each in self.rounds)


@dataclass(frozen=True, slots=True)
class Everything:
    """flags: of the server. tls, token: of its client."""

    flags: tuple[str, ...]
    tls: Tls | None
    token: str


def run(
    path: Path, options: EverythingOptions, known: Collection[str], progress: Callable[[str], None]
) -> EverythingResult:
    """known: names of settings that this server has."""
    machine, rounds = this_machine(), list[Round]()
    flags: tuple[str, ...] = ()
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}: two servers, {options.calls:,} calls of each")
        flags, measured = _round(path, options, known, number)
        rounds.append(measured)
    return EverythingResult(options, flags[::2], tuple(rounds), machine, commit())


def _round(path: Path, options: EverythingOptions, known: Collection[str], seed: int) -> tuple[tuple[str, ...], Round]:
    """The flags of the server that has everything, and what was measured."""
    items = checkpoint.load(path).items.item_id
    rng = np.random.default_rng(seed)
    events = np.zeros(options.events, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = rng.choice(items, len(events)), 1, 4
    events["time_ms"] = _START_MS + 1_000 * np.arange(len(events))
    usual = ("--threads", str(options.threads), "--max-clock-skew-s", "0")
    # The one that starts first is another one each round.
    took = {side: list[float]() for side in (("off", "on") if seed % 2 else ("on", "off"))}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="mfalcon-everything-")))
        everything = made(scratch, stack.enter_context(collector()), known, options)
        clients = dict[str, Client]()
        for side in took:
            flags = (*usual, *(everything.flags if side == "on" else ()))
            server = ServerProcess(path, scratch, flags)
            server.start()
            stack.callback(server.kill)
            if side == "on":
                client = Client(server.grpc, tls=everything.tls, token=everything.token or None, token_in_clear=True)
            else:
                client = Client(server.grpc)
            clients[side] = stack.enter_context(client)
            client.wait_ready(START_S)
            client.append_events(_USER, events)
        warmup, calls = (-(-num // options.in_a_row) for num in (options.warmup, options.calls))
        for turn in range(warmup + calls):
            asked = rng.choice(items, (options.in_a_row, options.candidates))
            for side in ("off", "on") if turn % 2 else ("on", "off"):
                for candidates in asked:
                    began = time.perf_counter()
                    clients[side].rank(_USER, candidates, request_time_ms=_START_MS + 10**9)
                    if turn >= warmup:
                        took[side].append(time.perf_counter() - began)
    off, on = (np.percentile(took[side], [50, 99]) * 1_000 for side in ("off", "on"))
    return everything.flags, Round((float(off[0]), float(off[1])), (float(on[0]), float(on[1])))


def made(
    directory: Path,
    otlp: str,
    known: Collection[str],
    options: EverythingOptions = EverythingOptions(),
) -> Everything:
    """Every setting that secures or observes, of those that are known. Flags stand before their values."""
    token = f"mfk_{token_urlsafe(32)}"
    (directory / "callers.toml").write_text(
        '[[callers]]\nname = "bench"\nrights = ["rank", "append"]\n\n'
        f'[[callers.tokens]]\nsha256 = "{sha256(token.encode()).hexdigest()}"\n'
    )
    tls: Tls | None = None
    values = {
        "tokens_file": str(directory / "callers.toml"),
        "capture_dir": str(directory / "capture"),
        "capture_sample": str(options.capture_sample),
        "access_log": str(directory / "access.log"),
        "access_log_sample": "1",
        "slow_log_ms": "1000",
        "otlp_endpoint": otlp,
        "trace_sample": str(options.trace_sample),
        "log_format": "json",
    }
    known = set(known).difference(options.without)
    if "tls_cert_file" in known:
        certificate, key = certificate_in(directory)
        values |= {"tls_cert_file": str(certificate), "tls_key_file": str(key)}
        tls = Tls(root_certificates=certificate.read_bytes())
    flags = [(f"--{name.replace('_', '-')}", value) for name, value in values.items() if name in known]
    return Everything(tuple(part for flag in flags for part in flag), tls, token if "tokens_file" in known else "")


def certificate_in(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 for a day, signed by itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "server.pem", directory / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


class _Collects(grpc.GenericRpcHandler):
    """Answers every call with an empty message, which is what an OTLP collector says that took all."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Whatever the method is."""
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


@contextmanager
def collector() -> Iterator[str]:
    """Where traces go, http://HOST:PORT; they are taken and thrown away."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Collects()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


def page(result: EverythingResult) -> list[Part]:
    """For people."""
    rows = [
        (*(f"{value:.2f}" for value in (*each.off_ms, *each.on_ms)), *(f"{value:+.1%}" for value in each.growth))
        for each in result.rounds
    ]
    title = (
        f"A rank of {result.options.candidates:,} candidates over gRPC, ms as its client sees it, "
        f"{result.options.calls:,} calls of each server, {result.options.in_a_row} at a turn, new servers in each row"
    )
    return [
        headline(result.machine, result.commit),
        f"on: {' '.join(result.on)}; of the calls {result.options.trace_sample:.0%} are traced; "
        f"captured are {result.options.capture_sample:.0%} of the users",
        Table(title, ("off p50", "off p99", "on p50", "on p99", "p50", "p99"), rows),
        f"median growth of p50: {result.growth:+.1%}; it may be {BAR:.0%}",
    ]
