"""The device and the event loops."""

from mfalcon.metrics.definition import GaugeDefinition, HistogramDefinition, Section

SECTION = Section(title="Device and event loops")

QUEUE_JOBS = GaugeDefinition(
    name="mfalcon_queue_jobs",
    help="Jobs that wait for the device, now.",
    section=SECTION,
)
RUNNING_JOBS = GaugeDefinition(
    name="mfalcon_running_jobs",
    help="Jobs of the step that the device does, now.",
    section=SECTION,
    tells="One that was interrupted after a slice waits again, and counts as that.",
)
QUEUE_SECONDS = GaugeDefinition(
    name="mfalcon_queue_seconds",
    help="Time that the jobs which wait are predicted to take, now.",
    section=SECTION,
    tells="Autoscale by it ([scaling.md](scaling.md)).",
)
DEVICE_HEARTBEAT = GaugeDefinition(
    name="mfalcon_device_heartbeat_seconds",
    help="Time since the step of requests in progress began, 0 while there is none.",
    section=SECTION,
    tells="A step that does not end is a device that hangs: `--device-stall-s` ends the server.",
)
BATCH_JOBS = HistogramDefinition(
    name="mfalcon_batch_jobs",
    help="Jobs that one step did.",
    section=SECTION,
    labels=("model",),
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
SLICE_SECONDS = HistogramDefinition(
    name="mfalcon_slice_seconds",
    help="Time of a step of requests.",
    section=SECTION,
    labels=("model",),
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    tells="Its sum is the time in which the device computed.",
)
COST_RATIO = HistogramDefinition(
    name="mfalcon_cost_ratio",
    help="Time of a step over the time that was predicted of it.",
    section=SECTION,
    labels=("model",),
    buckets=(0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
    tells="Admission is as good as this is near 1; beside other work on the same cores it rises.",
)
LOOP_LAG = HistogramDefinition(
    name="mfalcon_loop_lag_seconds",
    help="How late the event loop runs what is due, asked every 0.05 s.",
    section=SECTION,
    labels=("frontend",),
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    frontends=True,
    tells="While it is held up it serves nobody. `frontend` is a front-end's number, \"\" for the engine's process.",
)
