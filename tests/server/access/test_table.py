"""Each row of the table of credentials, by both transports of a real server, with front-ends and without."""

from pathlib import Path

import pytest

from tests.server.access.table import ROWS, ends, settings
from tests.server.harness import serving


@pytest.mark.parametrize("frontends", [0, 1])
async def test_every_credential_ends_as_the_table_says(tmp_path: Path, frontends: int) -> None:
    async with serving(frontends=frontends, **settings(tmp_path)) as running:
        for row in ROWS:
            told = await ends(running, row)
            assert told == {name: [row.code] * row.times for name in ("gRPC", "HTTP")}, row
