"""Every bad input that we try, with its answer, as a page for readers."""

from collections.abc import Sequence

from tests.server.bad_input import appends, batches, bodies, inference, messages, ranks, streams, users
from tests.server.bad_input.cases import Answer, Case, GrpcCase
from tests.server.bad_input.making import LAST_TIME_MS, USER
from tests.server.harness import Clients

CASES: Sequence[Case] = tuple(
    case for room in (ranks, streams, batches, appends, users, messages, bodies, inference) for case in room.CASES
)


async def answers(running: Clients) -> Sequence[tuple[Case, Answer]]:
    """Every case with the answer that a server gave."""
    return [(case, await case.send(running)) for case in CASES]


def as_markdown(rows: Sequence[tuple[Case, Answer]]) -> str:
    """The table for readers."""
    lines = [
        "# Bad input and its answers",
        "",
        "Written by `python -m tests.server.bad_input > docs/bad-input.md` from the answers of a running server with a",
        "tiny model; the same table is a test (`tests/server/test_bad_input.py`). After each of these nothing is",
        f"stored and the next request is answered as if it had not been. The user `{USER}` has one stored event, at",
        f"time {LAST_TIME_MS}; the model, `small`, has three actions, the context features `surface` and `hour`, and",
        "the dense features `price` and `rank_before`; limits are the defaults. `RankBatch` and",
        "`AppendBatch` answer each part by itself: such rows name what is told of the first part.",
        "",
        "| Transport | Call | Input | Answer |",
        "|---|---|---|---|",
    ]
    for case, answer in rows:
        transport = "gRPC" if isinstance(case, GrpcCase) else "HTTP"
        code = f"{answer.status} {answer.code}".strip() if answer.status else answer.code
        code = f"of the first part {answer.code}" if answer.part else code
        call = case.call if len(case.call) < 60 else case.call[:24] + "..." + case.call[-10:]
        lines.append(f"| {transport} | `{call}` | {case.shown} | {code}: {cell(answer.message)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text that a Markdown table leaves alone."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("_", "\\_").replace("<", "&lt;")
