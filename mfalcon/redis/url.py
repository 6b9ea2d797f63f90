"""One client for every way to run Redis: a single server, TLS, a unix socket, Sentinel, a cluster.

    redis://[user:password@]host:port/db        rediss:// with TLS        unix:///path
    redis+sentinel://host:port,host:port/service[/db]      rediss+sentinel://
    redis+cluster://host:port,host:port                    rediss+cluster://

Options of the query are redis-py's ssl_..., db, username, password and client_name: times and pools are ours.
Credentials of a Sentinel URL are the master's.
"""

import re
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from mfalcon.errors import ConfigError
from mfalcon.redis.sentinel import MasterPool

AnyRedis: TypeAlias = redis.asyncio.Redis | RedisCluster

_MANY_HOSTS = re.compile(r"(?P<credentials>[^@]*@)?(?P<hosts>[^/?@]+)(?P<tail>.*)")
_OPTIONS = ("db", "username", "password", "client_name")
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def connect(url: str, connect_timeout_s: float, timeout_s: float, max_connections: int) -> AnyRedis:
    """A client that has not connected yet and never retries. timeout_s: of a socket that says nothing more.

    Raises ConfigError, which names what is wrong.

    redis-py's defaults retry ten times with a timeout of five seconds each: 58 s on a frozen server.
    """
    if not HIREDIS_AVAILABLE:
        raise ConfigError("hiredis is not installed: redis-py's own parser is 4 to 10 times slower on KV states")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:  # what else it is may be a password
        raise ConfigError(f"redis_url: must begin with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    plain, _, kind = scheme.partition("+")
    common = _options(connect_timeout_s, timeout_s)
    if kind == "cluster":
        return _cluster(plain, rest, common, max_connections)
    if kind == "sentinel":
        return _sentinel(plain, rest, common, max_connections)
    return redis.asyncio.Redis.from_pool(ConnectionPool(max_connections=max_connections, **(_parse(url) | common)))


def _parse(url: str) -> dict[str, Any]:
    """redis-py's reading of a plain URL, of which only what is the caller's to say. ConfigError without the URL."""
    try:
        path, query = urlsplit(url).path.strip("/"), parse_qs(urlsplit(url).query)
        given = dict(parse_url(url))
    except ValueError:
        raise ConfigError(
            "redis_url: host and port cannot be read; percent-encode / # ? @ : in user and password"
        ) from None
    if not url.startswith("unix:") and path and not path.isdecimal():
        raise ConfigError(f"redis_url: got database {path!r}, must be a number")
    for name in query:
        if not (name.startswith("ssl_") or name in _OPTIONS):
            raise ConfigError(f"redis_url: got option {name!r}, must be ssl_... or one of {', '.join(_OPTIONS)}")
    return given


async def disconnect(client: AnyRedis) -> None:
    """Close every connection, those to Sentinels too."""
    await client.aclose()
    if not isinstance(client, RedisCluster) and isinstance(client.connection_pool, MasterPool):
        await client.connection_pool.aclose()


def redacted(url: str) -> str:
    """The URL without its credentials and options, fit for a log."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _options(connect_timeout_s: float, timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # no greeting: a new connection costs no round trip of its own
        "driver_info": None,
    }


def _hosts(rest: str) -> tuple[str, list[tuple[str, int]], str]:
    """`user:password@` or nothing, hosts and ports, and what follows them."""
    match = _MANY_HOSTS.fullmatch(rest)
    try:
        parts = [urlsplit(f"//{host}") for host in match["hosts"].split(",")] if match else []
        hosts = [(str(part.hostname), part.port or 6379) for part in parts if part.hostname]
    except ValueError:
        hosts = []
    if match is None or not hosts or len(hosts) != len(parts):
        raise ConfigError(
            "redis_url: got no hosts, must be host:port,host:port; percent-encode / # ? @ : in a password"
        )
    return match["credentials"] or "", hosts, match["tail"]


def _cluster(plain: str, rest: str, common: dict[str, Any], max_connections: int) -> RedisCluster:
    credentials, hosts, tail = _hosts(rest)
    given = _parse(f"{plain}://{credentials}{hosts[0][0]}:{hosts[0][1]}{tail}")
    if given.pop("connection_class", None) is SSLConnection:
        given["ssl"] = True
    for name in ("host", "port", "db"):
        given.pop(name, None)
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        require_full_coverage=False,
        max_connections=max_connections,
        **(given | common),
    )


def _sentinel(plain: str, rest: str, common: dict[str, Any], max_connections: int) -> redis.asyncio.Redis:
    credentials, hosts, tail = _hosts(rest)
    path, _, query = tail.partition("?")
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ConfigError("redis_url: must name the Sentinel service: redis+sentinel://host:port/service")
    first_host, first_port = hosts[0]
    given = _parse(f"{plain}://{credentials}{first_host}:{first_port}/{db or 0}?{query}")
    is_tls = given.pop("connection_class", None) is SSLConnection
    for name in ("host", "port"):
        given.pop(name, None)
    tls = {"ssl": True} | {name: value for name, value in given.items() if name.startswith("ssl_")} if is_tls else {}
    sentinel = Sentinel(hosts, sentinel_kwargs=common | tls, **common)  # type: ignore[no-untyped-call]
    pool = MasterPool(service, sentinel, with_tls=is_tls, max_connections=max_connections, **(given | common))
    return redis.asyncio.Redis.from_pool(pool)
