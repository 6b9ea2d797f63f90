"""`mfalcon demo`: the whole story in one run, from data to ranked candidates over gRPC."""

import time

import numpy as np
import torch
import typer
from rich.console import Console

from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import serve
from mfalcon.cli.calling import calling
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.demo_lists import show_diverse, show_merged
from mfalcon.cli.demo_members import CHECKPOINT, ENSEMBLE, MERGED, Members, merge_members, train_members
from mfalcon.cli.process import serving
from mfalcon.cli.rank import cost_line, top_table
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.laws import masked_forward
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.types import EVENT_DTYPE, Events
from mfalcon.window import WindowRule
from mfalcon_client import Client, Ranking, Rerank

USER = "450"
"""A person of 540 ratings, most of them likes."""
DIVERSE = Rerank("dpp", 0.25)
"""The strength that costs no accuracy on the whole catalogue: docs/rerank.md."""
_SHOWN_LIKES = 5
_MICROBATCH = 256
_SAMPLED_CANDIDATES = 40

_console = Console(highlight=False)


def demo(user: str = typer.Option(USER, help="MovieLens user to rank for.")) -> None:
    """Fetch MovieLens-100K, train two small rankers, serve them, rank a real user's candidates, and end."""
    _step("Data")
    dataset = open_dataset("ml-100k", "", None, "", None)
    if user not in dataset.user_ids:
        raise ConfigError(f"--user: got {user!r}, must be one of MovieLens-100K's, 1 to {len(dataset.user_ids)}")
    _console.print(f"MovieLens-100K: {len(dataset.events):,} ratings, {len(dataset.user_ids)} users")
    _step("Training")
    train_members(_console, dataset)
    torch.set_num_threads(owned_cores())
    members = merge_members(_console, dataset)
    _step("Serving")
    with serving(None, "--config", str(ENSEMBLE)) as served, calling(served.grpc) as client:
        _console.print(f"mfalcon serve is up: gRPC at {served.grpc}, HTTP at {served.http}")
        _rank(client, dataset, members, user)
    _console.print("\nThe server of this demo is stopped. Next:  [bold]make serve[/bold]  keeps one running,")
    _console.print("with a page for people at http://127.0.0.1:8080/ (docs/console.md). Then")
    _console.print(f"  .venv/bin/mfalcon load --user {user}", markup=False)
    _console.print(f"  .venv/bin/mfalcon rank --user {user} --checkpoint {CHECKPOINT}", markup=False)
    _console.print(f"Both and their merge:  .venv/bin/mfalcon serve --config {ENSEMBLE}", markup=False)


def _rank(client: Client, dataset: Dataset, members: Members, user: str) -> None:
    index = dataset.user_ids.index(user)
    history = dataset.events[dataset.of_user(index)]
    likes = history[history["value"] >= 4][-_SHOWN_LIKES:]
    _step(f"User {user}")
    _console.print(f"{len(history)} ratings; the last titles liked:")
    for event in likes[::-1]:
        _console.print(f"  {dataset.items.title(int(event['item_id']))}", markup=False)
    client.append_events(user, history, expected_len=0)
    context = {name: int(column[index]) for name, column in dataset.user_context.items()}
    now = int(history["time_ms"][-1]) + 60_000
    ids = dataset.items.item_id

    def ask(label: str, model: str = "", rerank: Rerank | None = None) -> Ranking:
        began = time.perf_counter()
        result = client.rank(user, ids, top_k=10, request_time_ms=now, context=context, model=model, rerank=rerank)
        _console.print(f"[bold]{label:<28}[/bold] {1000 * (time.perf_counter() - began):6.1f} ms; {cost_line(result)}")
        return result

    _step(f"Ranking {len(ids):,} candidates")
    first = ask("first request")
    _console.print(top_table(first, ids, dataset.items))
    again = ask("the same again (state hit)")
    _step("The same first ten, made diverse")
    diverse = ask("reranked", rerank=DIVERSE)
    wish = f"{DIVERSE.method}, strength {DIVERSE.strength:g}"
    show_diverse(_console, again, diverse, wish, dataset.items)
    _step("One model and two merged")
    alone = [ask(name, model=name) for name in members.loaded]
    merged = ask(MERGED, model=MERGED)
    arrived = [at for at, member in enumerate(merged.members) if member.arrived]
    answers, weights = [alone[at].task_scores for at in arrived], [members.weights[at] for at in arrived]
    expected = members.merge(answers, weights).task_scores
    worst = float(np.abs(merged.task_scores - expected).max())
    show_merged(_console, again, merged, worst, dataset.items)
    _step("One more event")
    event = np.zeros(1, dtype=EVENT_DTYPE)
    event["item_id"], event["actions"], event["value"], event["time_ms"] = ids[first.top[0]], 1 << 4, 5.0, now
    client.append_events(user, event)
    ask("after one appended event")
    _compare(members.first, history, context, now, again)


def _compare(loaded: Checkpoint, history: Events, context: dict[str, int], now: int, cached: Ranking) -> None:
    """The same scores without M-FALCON, in this process: one forward per candidate, timed on a sample."""
    model, items = loaded.model, loaded.items
    config = model.config
    window = history[WindowRule(config.max_history, config.window_chunk).start(len(history)) :]
    codes = torch.from_numpy(context_codes(config.context_features, context, now))
    rows = torch.from_numpy(items.keys(items.item_id))
    served = serve(model)
    with torch.inference_mode():
        events = event_tokens(window, items, torch.device("cpu"))
        truth = masked_forward(model, events, Targets(rows, codes), now).numpy().T
        began = time.perf_counter()
        for row in rows[:_SAMPLED_CANDIDATES]:
            score(served, prefill(served, events), Targets(row.view(1), codes), now, 1)
        per_candidate = (time.perf_counter() - began) / _SAMPLED_CANDIDATES
        began = time.perf_counter()
        score(served, prefill(served, events), Targets(rows, codes), now, _MICROBATCH)
        mfalcon = time.perf_counter() - began
    worst = float(np.abs(truth - cached.task_scores).max())
    naive = per_candidate * len(rows)
    _step("Against one forward per candidate")
    _console.print(
        f"one forward per candidate {naive:.2f} s (measured on {_SAMPLED_CANDIDATES}, scaled to {len(rows):,}); "
        f"M-FALCON {mfalcon * 1000:.1f} ms, prefill included: [bold]{naive / mfalcon:.0f} times faster[/bold]"
    )
    _console.print(f"max |cached - uncached| over {len(rows):,} candidates and all tasks: [bold]{worst:.1e}[/bold]")


def _step(title: str) -> None:
    _console.rule(f"[bold]{title}", align="left")
