"""What runs: the device, models and processes."""

from mfalcon.metrics.panels.panel import Panel, Query, Row, quantiles

DEVICE = Row(
    title="Device and event loops",
    panels=(
        Panel(
            title="Queue",
            unit="s",
            queries=(Query("mfalcon_queue_seconds{@all}", "{{instance}}"),),
            tells="The time that the jobs which wait are predicted to take.",
        ),
        Panel(
            title="Device busy",
            unit="percentunit",
            queries=(Query("sum by (instance) (rate(mfalcon_slice_seconds_sum{@all}[@rate]))", "{{instance}}"),),
            tells="The part of the time in which it computed.",
        ),
        Panel(
            title="Step over its forecast",
            unit="none",
            queries=quantiles("mfalcon_cost_ratio", "", "@model", "", (0.5, 0.9)),
            tells="Admission is as good as this is near 1.",
        ),
        Panel(
            title="Time of a step",
            unit="s",
            queries=quantiles("mfalcon_slice_seconds", "model", "@model", "{{model}}", (0.5, 0.99)),
        ),
        Panel(
            title="Step in progress",
            unit="s",
            queries=(Query("mfalcon_device_heartbeat_seconds{@all}", "{{instance}}"),),
            tells="A device that hangs shows here as a line that rises.",
        ),
        Panel(
            title="Event loops: lateness",
            unit="s",
            queries=quantiles(
                "mfalcon_loop_lag_seconds", "instance, frontend", "@all", "{{instance}} {{frontend}}", (0.99,)
            ),
            tells="Of the engine's process, and of each front-end by its number.",
        ),
    ),
)

MODELS = Row(
    title="Models and reloads",
    panels=(
        Panel(
            title="Versions served",
            unit="short",
            queries=(Query("count by (model, version) (mfalcon_model_info{@model})", "{{model}} {{version}}"),),
            tells="Replicas by the checkpoint that they serve. Two of one model are a rollout.",
        ),
        Panel(
            title="Builds and settings",
            unit="short",
            queries=(
                Query("count by (version, torch) (mfalcon_build_info{@all})", "mfalcon {{version}}, torch {{torch}}"),
                Query("count by (hash) (mfalcon_config_info{@all})", "settings {{hash}}"),
            ),
            tells="Replicas by what runs there, and by a hash of how it is set up.",
        ),
        Panel(
            title="What computes",
            unit="short",
            queries=(
                Query(
                    "count by (model, backend, device, dtype) (mfalcon_backend{@model})",
                    "{{model}} {{backend}} {{dtype}}",
                ),
            ),
            tells="Replicas by the backend of each model.",
        ),
        Panel(
            title="Reloads",
            unit="short",
            queries=(
                Query("sum by (model, result) (increase(mfalcon_reloads_total{@model}[1h]))", "{{model}} {{result}}"),
            ),
            tells="In an hour.",
        ),
        Panel(
            title="Item rows changed",
            unit="rowsps",
            queries=(Query("sum by (model) (rate(mfalcon_item_rows_total{@model}[@rate]))", "{{model}}"),),
            tells="By deltas that are served.",
        ),
        Panel(
            title="Deltas of items",
            unit="short",
            queries=(
                Query(
                    "sum by (model, result) (increase(mfalcon_item_deltas_total{@model}[1h]))", "{{model}} {{result}}"
                ),
                Query(
                    "max by (model) (mfalcon_item_delta_number{@model}) - min by (model) "
                    "(mfalcon_item_delta_number{@model})",
                    "{{model}}: replicas apart",
                ),
            ),
            tells="In an hour. What is refused leaves the last table serving. Apart: the numbers of the last delta of "
            "the replica that is furthest, and of the one that is last.",
        ),
        Panel(
            title="Time of a delta until it is served",
            unit="s",
            queries=(
                Query(
                    "histogram_quantile(0.99, sum by (model, le) "
                    "(rate(mfalcon_item_delta_seconds_bucket{@model}[@rate])))",
                    "{{model}} p99",
                ),
            ),
        ),
        Panel(
            title="Candidates without a finite score",
            unit="short",
            queries=(Query("sum by (model) (rate(mfalcon_failed_candidates_total{@model}[@rate]))", "{{model}}"),),
        ),
        Panel(
            title="Reranks and merges that were not as asked",
            unit="reqps",
            stacked=True,
            queries=(
                Query(
                    'sum by (method, outcome) (rate(mfalcon_reranks_total{@model,outcome!="done"}[@rate]))',
                    "{{method}}: {{outcome}}",
                ),
                Query(
                    'sum by (ensemble, outcome) (rate(mfalcon_merges_total{@all,outcome!="whole"}[@rate]))',
                    "{{ensemble}}: {{outcome}}",
                ),
            ),
        ),
    ),
)

PROCESSES = Row(
    title="Processes",
    panels=(
        Panel(
            title="Memory",
            unit="bytes",
            queries=(Query("process_resident_memory_bytes{@all}", "{{instance}} {{frontend}}"),),
            tells="Resident; of the engine's process, and of each front-end by its number.",
        ),
        Panel(
            title="Cores in use",
            unit="short",
            queries=(Query("rate(process_cpu_seconds_total{@all}[@rate])", "{{instance}} {{frontend}}"),),
        ),
        Panel(
            title="Starts",
            unit="short",
            queries=(
                Query("changes(process_start_time_seconds{@all}[1h])", "{{instance}}"),
                Query("increase(mfalcon_frontend_restarts_total{@all}[1h])", "{{instance}} front-end {{frontend}}"),
            ),
            tells="Of each process in an hour, beside the first.",
        ),
        Panel(
            title="Descriptors in use",
            unit="percentunit",
            queries=(Query("process_open_fds{@all} / process_max_fds{@all}", "{{instance}} {{frontend}}"),),
        ),
    ),
)
