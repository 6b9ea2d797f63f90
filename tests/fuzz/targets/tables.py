"""Any bytes as a table of events that `mfalcon train` reads: CSV, TSV or gzipped CSV; the first byte is the kind.

Parquet is left out: polars ends the process where a damaged page makes it want 2**61 bytes.
"""

import gzip

from mfalcon.errors import DataError
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping
from tests.fuzz.files import directory

NAMES = ("fuzzed.csv", "fuzzed.tsv", "fuzzed.csv.gz")
COLUMNS = (
    ColumnMapping(),
    ColumnMapping(action="action", value="value"),
    ColumnMapping(value="value", features=("price",)),
    ColumnMapping(action="action", time_unit="iso8601"),
)
_ROWS = "user_id,item_id,timestamp,action,value,price\n" + "".join(
    f"u{row % 3},{row},{893286700 + 3600 * row},{('view', 'click', 'buy')[row % 3]},{row % 5},{row / 7:.2f}\n"
    for row in range(8)
)


def seeds() -> list[bytes]:
    """The same rows in each kind of file."""
    dates = b"user_id,item_id,timestamp,action\na,1,2024-01-02T03:04:05Z,x\nb,2,2024-01-03,y\n"
    csv = _ROWS.encode()
    files = (csv, csv.replace(b",", b"\t"), gzip.compress(csv, mtime=0))
    of_kinds = [bytes((kind, mapping)) + file for kind, file in enumerate(files) for mapping in (0, 1, 2)]
    return [*of_kinds, b"\0\3" + dates]


def target(data: bytes) -> None:
    """A data set or DataError."""
    if len(data) < 2:
        return
    path = directory("tables") / NAMES[data[0] % len(NAMES)]
    path.write_bytes(data[2:])
    try:
        read_table(path, columns=COLUMNS[data[1] % len(COLUMNS)])
    except DataError:
        return
