"""What is served: checkpoints, items' rows and graph vectors."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, HistogramDefinition, Section

SECTION = Section(title="Models and reloads")

BACKEND = GaugeDefinition(
    name="mfalcon_backend",
    help="1 for the backend that computes.",
    section=SECTION,
    labels=("model", "device", "dtype", "backend"),
    tells="The server says on standard error, before it is ready, why it is nothing faster.",
)
MODEL_INFO = GaugeDefinition(
    name="mfalcon_model_info",
    help="1 for the version of a model that is served.",
    section=SECTION,
    labels=("model", "architecture", "version"),
    tells="Several versions of one model at once are a rollout that goes on, or one that stopped halfway.",
)
BUILD_INFO = GaugeDefinition(
    name="mfalcon_build_info",
    help="1 for the version of mfalcon that runs, and of torch.",
    section=SECTION,
    labels=("version", "torch"),
)
CONFIG_INFO = GaugeDefinition(
    name="mfalcon_config_info",
    help="1 for a hash of all settings, which tells replicas apart that are set up otherwise.",
    section=SECTION,
    labels=("hash",),
    tells="Secrets are not a part of it.",
)
RELOADS = CounterDefinition(
    name="mfalcon_reloads",
    help="Exchanges of a model's checkpoint: swapped, or failed.",
    section=SECTION,
    labels=("model", "result"),
    values={"result": ("swapped", "failed")},
    tells="After `failed` the old one serves on; the log has the reason.",
)

ITEM_DELTAS = CounterDefinition(
    name="mfalcon_item_deltas",
    help="Deltas of item rows: applied, or why not.",
    section=SECTION,
    labels=("model", "result"),
    values={"result": ("applied", "malformed", "foreign", "no_room")},
    tells="`malformed`: rows that the model cannot have, or a torn file. `foreign`: of another checkpoint, or out of "
    "turn. After any of these the last table serves on; the log has the reason.",
)
ITEM_ROWS = CounterDefinition(
    name="mfalcon_item_rows",
    help="Item rows that deltas have changed or added.",
    section=SECTION,
    labels=("model",),
)
ITEM_DELTA_NUMBER = GaugeDefinition(
    name="mfalcon_item_delta_number",
    help="Number of the last delta of item rows.",
    section=SECTION,
    labels=("model",),
    tells="Where replicas differ for long, one of them does not follow.",
)
ITEM_DELTA_SECONDS = HistogramDefinition(
    name="mfalcon_item_delta_seconds",
    help="Time from the arrival of a whole delta of item rows until it is served.",
    section=SECTION,
    labels=("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

GRAPH_REFRESHES = CounterDefinition(
    name="mfalcon_graph_refreshes",
    help="Files of graph vectors: applied, or why not.",
    section=SECTION,
    labels=("model", "result"),
    values={"result": ("applied", "malformed", "foreign")},
    tells="`malformed`: no vectors that the model can have, or a torn file. `foreign`: of another checkpoint, or no "
    "newer than those that are served. After any of these the last vectors serve on; the log has the reason.",
)
GRAPH_NUMBER = GaugeDefinition(
    name="mfalcon_graph_number",
    help="Number of the last refresh of graph vectors.",
    section=SECTION,
    labels=("model",),
    tells="Where replicas differ for long, one of them does not follow.",
)
GRAPH_SECONDS = HistogramDefinition(
    name="mfalcon_graph_refresh_seconds",
    help="Time from reading a file of graph vectors until they are served.",
    section=SECTION,
    labels=("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
