"""One client for every way to run Redis: a single server, TLS, a unix socket, Sentinel, a cluster.

    redis://[user:password@]host:port/db        rediss:// with TLS        unix:///path
    redis+sentinel://host:port,host:port/service[/db]      rediss+sentinel://
    redis+cluster://host:port,host:port                    rediss+cluster://

Options of the query (ssl_ca_certs=..., say) are redis-py's. Credentials of a Sentinel URL are the master's.
"""

import re
from typing import TypeAlias
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from mfalcon.errors import ConfigError

AnyRedis: TypeAlias = redis.asyncio.Redis | RedisCluster

_MANY_HOSTS = re.compile(r"(?P<credentials>[^@]*@)?(?P<hosts>[^/?@]+)(?P<tail>.*)")
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def connect(url: str, connect_timeout_s: float, timeout_s: float, max_connections: int) -> AnyRedis:
    """A client that has not connected yet and never retries. timeout_s: of a socket that says nothing more.

    Raises ConfigError, which names what is wrong.

    redis-py's defaults retry ten times with a timeout of five seconds each: 58 s on a frozen server.
    """
    if not HIREDIS_AVAILABLE:
        raise ConfigError("hiredis is not installed: redis-py's own parser is 4 to 10 times slower on KV states")
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ConfigError(f"redis_url: got scheme {scheme!r}, must be one of {', '.join(SCHEMES)}")
    plain, _, kind = scheme.partition("+")
    options = _options(connect_timeout_s, timeout_s)
    try:
        if kind == "cluster":
            return _cluster(plain, rest, options, max_connections)
        if kind == "sentinel":
            return _sentinel(plain, rest, options, max_connections)
        pool = ConnectionPool.from_url(url, max_connections=max_connections, **options)
        return redis.asyncio.Redis.from_pool(pool)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"redis_url: {error}") from error


async def disconnect(client: AnyRedis) -> None:
    """Close every connection, those to Sentinels too, which redis-py leaves open."""
    await client.aclose()
    if not isinstance(client, RedisCluster) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def redacted(url: str) -> str:
    """The URL without its credentials and options, fit for a log."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _options(connect_timeout_s: float, timeout_s: float) -> dict[str, object]:
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
    parts = [urlsplit(f"//{host}") for host in match["hosts"].split(",")] if match else []
    if match is None or not all(part.hostname for part in parts):
        raise ValueError("got no hosts, must be host:port,host:port")
    return match["credentials"] or "", [(str(part.hostname), part.port or 6379) for part in parts], match["tail"]


def _cluster(plain: str, rest: str, common: dict[str, object], max_connections: int) -> RedisCluster:
    credentials, hosts, tail = _hosts(rest)
    given = dict(parse_url(f"{plain}://{credentials}{hosts[0][0]}:{hosts[0][1]}{tail}"))
    if given.pop("connection_class", None) is SSLConnection:
        given["ssl"] = True
    for name in ("host", "port", "db"):
        given.pop(name, None)
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        require_full_coverage=False,
        max_connections=max_connections,
        **(given | common),  # type: ignore[arg-type]
    )


def _sentinel(plain: str, rest: str, common: dict[str, object], max_connections: int) -> redis.asyncio.Redis:
    credentials, hosts, tail = _hosts(rest)
    path, _, query = tail.partition("?")
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ValueError("must name the Sentinel service: redis+sentinel://host:port/service")
    first_host, first_port = hosts[0]
    given = dict(parse_url(f"{plain}://{credentials}{first_host}:{first_port}/{db or 0}?{query}"))
    is_tls = given.pop("connection_class", None) is SSLConnection
    for name in ("host", "port"):
        given.pop(name, None)
    sentinel = Sentinel(hosts, sentinel_kwargs=common, **common)  # type: ignore[no-untyped-call]
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        service, sentinel, ssl=is_tls, max_connections=max_connections, **(given | common)
    )
    return redis.asyncio.Redis.from_pool(pool)
