"""What callers get."""

from mfalcon.metrics.definition import CounterDefinition, HistogramDefinition, Section

_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)

SECTION = Section(title="Requests")

REQUESTS = CounterDefinition(
    name="mfalcon_requests",
    help="Requests that arrived, each counted once when it ends, by the code that its caller gets.",
    section=SECTION,
    labels=("model", "verb", "transport", "code"),
    values={"transport": ("grpc", "http")},
    frontends=True,
    tells="`code` is the name of the status over gRPC, the number over HTTP. `CANCELLED`, `499`: the caller left. "
    "`RESOURCE_EXHAUSTED` without a model is what gRPC refused itself: a message that is too large, or that its caller "
    'took back before it was here, a call too many. `model` is a served model, "" where none was found or none is '
    'asked (AppendEvents, GetHistory, DeleteUser, ListModels) or several may be (RankBatch); `verb` is "" for a method '
    "or path that does not exist, and for what is no HTTP request. Probes and scrapes do not count.",
)
BATCH_PARTS = CounterDefinition(
    name="mfalcon_batch_parts",
    help="Ranks and appends of batches that were answered, by the code that each would have as a call of its own.",
    section=SECTION,
    labels=("verb", "transport", "code"),
    values={"verb": ("rank_batch", "append_batch"), "transport": ("grpc", "http")},
    frontends=True,
    tells="A batch is `OK` or `200` in `mfalcon_requests_total` whatever became of its parts. Here `code` is the name "
    "of the status over HTTP too.",
)
REQUEST_SECONDS = HistogramDefinition(
    name="mfalcon_request_seconds",
    help="Time of answered requests, from the whole message until the answer is serialised.",
    section=SECTION,
    labels=("model", "verb", "transport"),
    values={"transport": ("grpc", "http")},
    buckets=_BUCKETS,
    frontends=True,
    tells="It knows only those that were answered well: refusals would hide what the others wait.",
)
FIRST_PART_SECONDS = HistogramDefinition(
    name="mfalcon_first_part_seconds",
    help="Time of streams of scores, from the whole message until the first part is with the transport.",
    section=SECTION,
    labels=("model", "transport"),
    values={"transport": ("grpc", "http")},
    buckets=_BUCKETS,
    frontends=True,
    tells="It knows every stream that had a first part, however it ended; `mfalcon_request_seconds` has the whole of "
    "those that ended well. The nearer the two, the less is won by asking for parts.",
)
STAGE_SECONDS = HistogramDefinition(
    name="mfalcon_stage_seconds",
    help="Time of answered ranks by stage.",
    section=SECTION,
    labels=("model", "stage"),
    values={
        "stage": (
            *("admission", "log", "fetch", "queue", "features", "encode", "score"),
            *("merge", "rerank", "reply"),
        )
    },
    buckets=(
        *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        *(1.0, 2.0, 5.0, 10.0),
    ),
    frontends=True,
    tells="It says where the time goes. `admission`: message to engine, `log` and `fetch`: Redis, `queue`: the device "
    "had others, `features`: dense features and counters, `encode` and `score`: computing, `merge`: the mean of an "
    "ensemble's members, who count the stages before it under their own names, `rerank`: reordering the top where that "
    "was asked, `reply`: serialising.",
)
SCORED_CANDIDATES = CounterDefinition(
    name="mfalcon_scored_candidates",
    help="Candidates that were scored in answered ranks.",
    section=SECTION,
    labels=("model",),
    tells="It is the work that callers ask for, whatever the size of their requests.",
)
PARTIAL = CounterDefinition(
    name="mfalcon_partial",
    help="Ranks that were answered with the scores of their first candidates alone, as they allow.",
    section=SECTION,
    labels=("model",),
    tells="Many mean that the deadlines of those who allow it are short of the load.",
)
FAILED_CANDIDATES = CounterDefinition(
    name="mfalcon_failed_candidates",
    help="Candidates for which the model gives no finite number, in requests that are answered.",
    section=SECTION,
    labels=("model",),
    tells="`failed` of the answer names them, the log has their ids. Go back to the last checkpoint.",
)
UNANSWERED = CounterDefinition(
    name="mfalcon_unanswered",
    help="Ranks and prefills that the engine did not answer: refused by prediction or for want of room, late, or "
    "abandoned by their caller.",
    section=SECTION,
    labels=("model", "reason"),
    values={"reason": ("refused", "late", "abandoned")},
    tells="`refused`: they would have come too late, or there was no room; `late`: their deadline passed; `abandoned`: "
    "their caller left.",
)
AFFINITY_MISMATCH = CounterDefinition(
    name="mfalcon_affinity_mismatch",
    help="Requests whose affinity key is not their user's, or who have none.",
    section=SECTION,
    labels=("transport", "key"),
    values={"transport": ("grpc", "http"), "key": ("wrong", "none")},
    frontends=True,
    tells="They are answered, but a balancer that hashes `x-rank-key` sends them to any replica, where the state is "
    "not. Nothing to mind without a balancer.",
)
REFUSALS_PACED = CounterDefinition(
    name="mfalcon_refusals_paced",
    help="Answers that name a fault of the caller and had to wait, since there were more than max_refusals_per_s.",
    section=SECTION,
    labels=("transport",),
    values={"transport": ("grpc", "http")},
    frontends=True,
    tells="Somebody sends wrong requests by the thousand: the codes of `mfalcon_requests` say what is wrong with them, "
    "the access log who it is.",
)
HANDSHAKES_PACED = CounterDefinition(
    name="mfalcon_handshakes_paced",
    help="TLS connections over HTTP that had to wait for their turn, since there were more than tls_handshakes_per_s.",
    section=SECTION,
    labels=("end",),
    values={"end": ("begun", "late", "closed")},
    frontends=True,
    needs="--tls-cert-file",
    tells="`begun`: had its turn; `late`: had none within tls_handshake_timeout_s; `closed`: made place for others, "
    "or its client had left. Somebody opens connections by the hundred a second: clients that keep none, or a flood.",
)
RERANKS = CounterDefinition(
    name="mfalcon_reranks",
    help="Ranks whose top was to be reranked: done, or why it is in the order of the scores (rerank_skipped).",
    section=SECTION,
    labels=("model", "method", "outcome"),
    tells="[rerank.md](rerank.md) says more. `done`; or `late`: there was no time, `failed`: the log says why; of a "
    "language model also `off`, `busy`, `unavailable`, `refused` and `no_permutation`.",
)
MERGES = CounterDefinition(
    name="mfalcon_merges",
    help="Ranks of ensembles: of all members (whole), of some (partial), or of too few to be answered.",
    section=SECTION,
    labels=("ensemble", "outcome"),
    values={"outcome": ("whole", "partial", "too_few")},
    needs="[[ensembles]]",
    tells="[merging.md](merging.md) says more. `partial`: a member is missing, or has no score for some candidate; "
    "`too_few`: no answer.",
)
MEMBERS = CounterDefinition(
    name="mfalcon_members",
    help="Members of ensembles in merges: arrived, or why they did not.",
    section=SECTION,
    labels=("ensemble", "member", "outcome"),
    needs="[[ensembles]]",
    tells="`arrived`; `late`: not within the budget; `overloaded`: refused; `away`: its replica does not answer; "
    "`disagrees`: what it serves cannot be merged, the log says why; `outdated`: it read another history than the "
    "others; `given_up`: the others were too few; `failed`.",
)
