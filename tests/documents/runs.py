"""Which test runs a command of the pages that the tests here do not play: a line for each, by how the command begins.

`test` runs it, or, where it takes minutes, a cluster or a device, runs on a small scale what it consists of; it says
`needle` somewhere. `why` says why a page's own words are not run.
"""

from dataclasses import dataclass

MINUTES = "it takes minutes"
PLACES = "it names machines, files or a model of the reader's"
INSTALLS = "it installs packages"


@dataclass(frozen=True, slots=True)
class Run:
    """A command, by the words that it begins with, and the test that runs it."""

    begins: str
    test: str
    needle: str
    why: str

    def fits(self, words: tuple[str, ...]) -> bool:
        """Whether a command begins so."""
        own = tuple(self.begins.split())
        return words[: len(own)] == own


BENCH = "tests/loadtest/bench"
RUNS = (
    Run("mfalcon bench append", f"{BENCH}/test_score.py", "AppendOptions", MINUTES),
    Run("mfalcon bench backend-quality", f"{BENCH}/test_backend_quality.py", "measure", MINUTES),
    Run("mfalcon bench damaged", f"{BENCH}/test_damaged.py", "run", MINUTES),
    Run("mfalcon bench dlrm", f"{BENCH}/test_dlrm.py", "dlrm_pairs", MINUTES),
    Run("mfalcon bench dlrm-serving", f"{BENCH}/test_dlrm_serving.py", "ServingOptions", MINUTES),
    Run("mfalcon bench embeddings", f"{BENCH}/test_embeddings.py", "EmbeddingOptions", MINUTES),
    Run("mfalcon bench faults", "tests/faults/test_faults.py", "measure", MINUTES),
    Run("mfalcon bench faults --of server", "tests/faults/test_server_faults.py", "FAULTS", MINUTES),
    Run("mfalcon bench hostile", "tests/loadtest/faults/test_hostile.py", "HostileOptions", MINUTES),
    Run("mfalcon bench late-events", f"{BENCH}/test_late_events.py", "QUICK", MINUTES),
    Run("mfalcon bench log", f"{BENCH}/test_event_log.py", "LogOptions", MINUTES),
    Run("mfalcon bench overhead", f"{BENCH}/test_overhead.py", "OverheadOptions", MINUTES),
    Run("mfalcon bench reload", f"{BENCH}/test_reload.py", '"bench", "reload"', MINUTES),
    Run("mfalcon bench replay", "tests/loadtest/load/test_replay_trace.py", "replay", MINUTES),
    Run("mfalcon bench saturation", f"{BENCH}/test_saturation.py", "SaturationOptions", MINUTES),
    Run("mfalcon bench scale", "tests/loadtest/scale/test_simulation.py", "SimFleet", MINUTES),
    Run("mfalcon bench scale-check", "tests/loadtest/scale/test_simulation.py", "Player", "it starts four replicas"),
    Run("mfalcon bench scale-costs", "tests/documents/test_benches.py", "scale-costs", MINUTES),
    Run("mfalcon bench scale-page", "tests/cli/test_bench_scale.py", '"scale-page"', "it writes to docs/"),
    Run("mfalcon bench score", f"{BENCH}/test_score.py", "bench_score", MINUTES),
    Run("mfalcon bench serve", "tests/documents/test_benches.py", "bench serve", MINUTES),
    Run("mfalcon bench state", f"{BENCH}/test_state.py", "StateOptions", MINUTES),
    Run("mfalcon bench state-quality", f"{BENCH}/test_state.py", "state_quality", MINUTES),
    Run("mfalcon bench storm", f"{BENCH}/test_storm.py", "StormOptions", MINUTES),
    Run("mfalcon bench tables", f"{BENCH}/test_score.py", '"tables"', PLACES),
    Run("mfalcon bench wire", f"{BENCH}/test_wire.py", "WireOptions", MINUTES),
    Run("mfalcon chaos", "tests/loadtest/faults/test_chaos_run.py", "ChaosOptions", MINUTES),
    Run("mfalcon delete", "tests/cli/test_delete.py", "delete", PLACES),
    Run("mfalcon evaluate", "tests/cli/test_commands.py", '"evaluate"', MINUTES),
    Run("mfalcon graph", "tests/train/test_graph.py", "item_graph", MINUTES),
    Run("mfalcon import dlrm-v3", "tests/importing/test_import.py", "dlrm_v3", PLACES),
    Run("mfalcon import recsys-examples", "tests/importing/test_recsys_examples.py", '"recsys-examples"', PLACES),
    Run("mfalcon ingest", "tests/documents/test_played.py", "test_a_stream", "their events are the page's own"),
    Run("mfalcon ingest-kafka", "tests/ingest/test_kafka.py", "kafka", "it needs a broker"),
    Run("mfalcon interests", "tests/server/test_interests.py", "interests", MINUTES),
    Run("mfalcon learn-items", "tests/cli/test_learn_items.py", "learn_items", PLACES),
    Run("mfalcon load", "tests/cli/test_load.py", "load", PLACES),
    Run("mfalcon loadtest", "tests/loadtest/load/test_open_loop.py", '"loadtest"', MINUTES),
    Run("mfalcon loadtest --scenario", "tests/loadtest/scenarios/test_scenarios.py", "play", MINUTES),
    Run("mfalcon log backup", "tests/cli/test_log.py", "backup", PLACES),
    Run("mfalcon log migrate", "tests/history/test_migration.py", "migrate", PLACES),
    Run("mfalcon merge fit", "tests/cli/test_merge.py", '"fit"', MINUTES),
    Run("mfalcon new-model", "tests/test_your_model.py", "mfalcon new-model", "the test calls what the command calls"),
    Run("mfalcon plan", "tests/cli/test_plan.py", "plan", MINUTES),
    Run("mfalcon rank", "tests/cli/test_rank_table.py", "rank", PLACES),
    Run("mfalcon reload", "tests/cli/test_reload_command.py", "reload", PLACES),
    Run("mfalcon replay", "tests/replay/test_command.py", "replay", MINUTES),
    Run("mfalcon serve", "tests/cli/test_serve.py", "serve", "it does not end"),
    Run("mfalcon token new", "tests/cli/test_token.py", "new", PLACES),
    Run("mfalcon train", "tests/cli/test_train.py", "train", MINUTES),
    Run("mfalcon update-items", "tests/server/test_items.py", "update_items", PLACES),
    Run("mfalcon verify", "tests/cli/test_commands.py", '"verify"', PLACES),
    Run("make", "tests/documents/test_commands.py", "test_targets_and_modules_exist", "they install, or take minutes"),
    Run("pip", "tests/documents/test_runs.py", "test_extras_exist", INSTALLS),
    Run("pytest", "tests/test_your_model.py", "pytest", "the test calls it for the page's own package"),
    Run("python -m pytest", "tests/documents/test_runs.py", "test_folders_of_tests_exist", MINUTES),
    Run("python -m kernels.gpu.aot", "tests/kernels/test_aot.py", "aot", MINUTES),
    Run("python3 -m loadtest.bench.gpu_checks", f"{BENCH}/test_gpu_run.py", "gpu_checks", "it needs a GPU"),
    Run("python3 -m loadtest.bench.gpu_all", f"{BENCH}/test_gpu_run.py", "gpu_all", "it needs a GPU"),
    Run("docker build", "tests/image/conftest.py", "images", "it takes minutes, as root"),
    Run("docker run", "tests/image/test_image.py", "the bounds of a container", "it takes minutes, as root"),
    Run("docker compose", "tests/image/test_compose.py", "compose", "it takes minutes, as root"),
    Run("kind", "tests/deploy/test_kubernetes.py", "kubectl", "it needs a cluster"),
    Run("kubectl", "tests/deploy/test_kubernetes.py", "kubectl", "it needs a cluster"),
    Run("locust", "tests/loadtest/scenarios/test_scenarios.py", "locust", MINUTES),
    Run("redis-server", "tests/history/test_durability.py", "appendonly", "fixtures start it on a free port"),
    Run("curl -s -X DELETE", "tests/server/test_transports.py", "delete", "it is played on the README's page"),
    Run("tail", "tests/documents/test_played.py", "from_tail", "it does not end"),
)
