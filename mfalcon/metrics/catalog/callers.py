"""Who callers are and what they use, where the server knows."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="Callers")

CALLER_REQUESTS = CounterDefinition(
    name="mfalcon_caller_requests",
    help="Requests of a caller that the engine was asked.",
    section=SECTION,
    labels=("caller",),
    needs="--tokens-file",
    tells="Callers have the names that the operator gave them.",
)
CALLER_CANDIDATES = CounterDefinition(
    name="mfalcon_caller_candidates",
    help="Candidates of a caller that the engine was asked.",
    section=SECTION,
    labels=("caller",),
    needs="--tokens-file",
)
CALLER_REFUSED = CounterDefinition(
    name="mfalcon_caller_refused",
    help="Requests of a caller that were beyond one of its limits.",
    section=SECTION,
    labels=("caller", "limit"),
    needs="--tokens-file",
    tells="The caller asks for more than was agreed: give it more, or tell it.",
)
CALLER_GIVEN_BACK = CounterDefinition(
    name="mfalcon_caller_given_back",
    help="Candidates that were charged to a caller and given back: the engine did not take the request.",
    section=SECTION,
    labels=("caller",),
    needs="--tokens-file",
)
CALLER_RUNNING = GaugeDefinition(
    name="mfalcon_caller_running",
    help="Requests of a caller that the engine works on.",
    section=SECTION,
    labels=("caller",),
    needs="--tokens-file",
)
