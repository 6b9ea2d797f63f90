"""Every kind of credential over both transports, asked of a real server, as a table.

`python -m tests.server.access.table` prints it; a test holds each row.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.server.access.credentials import CALLS, bearer, by_grpc, by_http, in_days, table, token, written
from tests.server.access.jwt_makers import AUDIENCE, BAD, ISSUER, jwks, private_keys, public_key, signed
from tests.server.harness import Running, serving


@dataclass(frozen=True, slots=True)
class Row:
    """A credential and how a call with it ends. call: one of `CALLS`. times: how often it is sent; each ends so."""

    kind: str
    shown: str
    code: str
    headers: Callable[[], Sequence[str]]
    call: str = "rank"
    times: int = 1


def by(text: str) -> Callable[[], Sequence[str]]:
    """A token that is known before."""
    return lambda: (bearer(text),)


ROWS: Sequence[Row] = (
    Row("none", "missing", "UNAUTHENTICATED", tuple),
    Row("bearer", "right", "OK", by(token("web"))),
    Row("bearer", "wrong", "UNAUTHENTICATED", by(token("nobody"))),
    Row("bearer", "expired", "UNAUTHENTICATED", by(token("gone"))),
    Row("bearer", "old and new of a rotation: old", "OK", by(token("web-old"))),
    Row("bearer", "replayed: sent again as it was", "OK", by(token("web")), times=3),
    Row("bearer", "right, without the right to delete", "PERMISSION_DENIED", by(token("web")), call="delete"),
    Row("bearer", "right, over its quota", "RESOURCE_EXHAUSTED", by(token("poor"))),
    Row("bearer", "sent twice in one call", "UNAUTHENTICATED", lambda: (bearer(token("web")),) * 2),
    Row("bearer", "as Basic", "UNAUTHENTICATED", lambda: ("Basic d2ViOndlYg==",)),
    Row("JWT", "right", "OK", lambda: (bearer(signed()),)),
    Row("JWT", "replayed: sent again as it was", "OK", lambda: (bearer(signed()),), times=3),
    Row("JWT", "right, without the right to append", "PERMISSION_DENIED", lambda: (bearer(signed()),), call="append"),
    Row("JWT", "right, its caller over its quota", "RESOURCE_EXHAUSTED", lambda: (bearer(signed(sub="svc-poor")),)),
    *(
        Row("JWT", shown, "UNAUTHENTICATED", lambda make=make: (bearer(make()),))  # type: ignore[misc]
        for shown, (make, _) in BAD.items()
    ),
)


def settings(directory: Path) -> Mapping[str, object]:
    """Of a server that knows the callers of the table."""
    (directory / "jwks.json").write_text(jwks(*(public_key(name) for name in private_keys())))
    tables = (
        table(
            "web",
            ["rank", "append"],
            [(token("web"), None), (token("web-old"), in_days(7)), (token("gone"), in_days(-1))],
        ),
        table("poor", ["rank"], [(token("poor"), None)], more='candidates_per_day = 1\nsubjects = ["svc-poor"]'),
    )
    return {
        "tokens_file": written(directory / "callers.toml", *tables),
        "jwks_file": directory / "jwks.json",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }


async def ends(running: Running, row: Row) -> dict[str, list[str]]:
    """The codes of a row, by transport."""
    headers = row.headers()
    return {
        name: [(await way(running, CALLS[row.call], *headers))[0] for _ in range(row.times)]
        for name, way in (("gRPC", by_grpc), ("HTTP", by_http))
    }


async def main() -> None:
    """Print the table, of a server with front-ends and of one without."""
    print("| credential | | gRPC | HTTP | gRPC, front-ends | HTTP, front-ends |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        given = settings(Path(directory))
        async with serving(**given) as alone, serving(frontends=2, **given) as behind:
            for row in ROWS:
                told = [*(await ends(alone, row)).values(), *(await ends(behind, row)).values()]
                cells = (f"{codes[0]}{f' x {len(codes)}' if len(codes) > 1 else ''}" for codes in told)
                print(f"| {row.kind} | {row.shown} | {' | '.join(cells)} |")


if __name__ == "__main__":
    asyncio.run(main())
