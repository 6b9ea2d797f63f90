"""Manifests against the server that they run: its settings, probes, ports, times and metrics."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfalcon.metrics.server_metrics import ServerMetrics
from server.config import ServerConfig, load_config
from tests.deploy.manifests import OVERLAYS, ROOT, Manifest, kubectl, only, pods, read, rendered, settings
from tests.server.harness import serving

BASE = read("base/namespace.yaml", "base/server.yaml", "base/envoy.yaml", "base/network.yaml")
ALL = BASE + read("components/redis/redis.yaml", "checkpoints.yaml")
SERVER = only(BASE, "Deployment")["spec"]["template"]["spec"]
(CONTAINER,) = SERVER["containers"]
SCALED = read("components/keda/scaledobject.yaml")[0]["spec"]
TRIGGERS = {trigger["name"]: trigger["metadata"] for trigger in SCALED["triggers"]}
AUTOSCALER = read("components/hpa/hpa.yaml")[0]["spec"]
LAST_S = 10
"""To write what waits for Redis, to stop the transports and to end, after the drain."""


def config_of(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServerConfig:
    """The settings that the server of an overlay makes of its ConfigMap and of its Secret."""
    secret = tmp_path / "server.toml"
    secret.write_text('redis_url = "redis://:a-password@redis:6379/0"\n')
    given = settings("base/kustomization.yaml") | settings(f"overlays/{overlay}/kustomization.yaml")
    assert given.pop("MFALCON_CONFIG") == "/secrets/server.toml"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return load_config(secret, {})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_takes_the_settings(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_of(overlay, monkeypatch, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": config.grpc_port, "http": config.http_port, "metrics": config.metrics_port}
    assert config.redis_url is not None
    # A wrong URL in a new version must never take the place of replicas that work.
    assert not config.ready_without_redis
    assert config.admin_port is None
    assert (overlay == "gpu") == (config.device == "cuda")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_covers_the_drain(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_of(overlay, monkeypatch, tmp_path)
    assert config.drain_seconds > config.request_timeout_ms / 1000
    # As docs/load-balancers.md says.
    assert config.drain_linger_s > 3
    drain = config.handover_s + config.drain_linger_s + config.drain_seconds
    assert SERVER["terminationGracePeriodSeconds"] >= drain + LAST_S
    assert "lifecycle" not in CONTAINER


def test_envoy_outlives_its_calls() -> None:
    (envoy,) = (pod for name, pod in pods(BASE) if name == "mfalcon-envoy")
    slept = envoy["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = re.search(r"max_stream_duration: (\d+)s", (ROOT.parent / "envoy/envoy.yaml").read_text())
    assert longest is not None
    assert int(longest[1]) < slept < envoy["terminationGracePeriodSeconds"]


def test_envoy_finds_the_replicas_and_callers_find_envoy() -> None:
    bootstrap = yaml.safe_load((ROOT.parent / "envoy/envoy.yaml").read_text())["static_resources"]
    service = only(BASE, "Service")
    assert service["spec"]["clusterIP"] == "None"
    replicas = {
        (address["address"], address["port_value"])
        for cluster in bootstrap["clusters"]
        for endpoints in cluster["load_assignment"]["endpoints"]
        for endpoint in endpoints["lb_endpoints"]
        for address in [endpoint["endpoint"]["address"]["socket_address"]]
    }
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert ports.pop("metrics") == 9090  # which is no caller's
    assert replicas == {(service["metadata"]["name"], port) for port in ports.values()}
    listening = {listener["address"]["socket_address"]["port_value"] for listener in bootstrap["listeners"]}
    assert listening == {port["port"] for port in only(BASE, "Service", "mfalcon-envoy")["spec"]["ports"]}


async def test_probes_ask_what_the_server_answers() -> None:
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/livez",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {probe["port"] for probe in probes.values()} == {"http"}
    async with serving() as running:
        for path in {probe["path"] for probe in probes.values()}:
            assert (await running.http.get(path)).status_code == 200


@pytest.mark.parametrize(("name", "pod"), [pytest.param(*pod, id=pod[0]) for pod in pods(ALL)])
def test_pods_are_restricted(name: str, pod: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        # The server takes as many threads as it has whole cores.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert name == "checkpoints" or int(container["resources"]["limits"]["cpu"]) > 0


def test_the_server_writes_nowhere_but_into_its_cache() -> None:
    written = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/cache"}
    paths = {one["name"]: one["value"] for one in CONTAINER["env"]}
    assert all(path.startswith("/cache") for path in paths.values())


def test_the_command_is_there() -> None:
    python, option, module, verb = CONTAINER["command"]
    assert (python, option, verb) == ("python", "-m", "serve")
    assert find_spec(f"{module}.__main__") is not None


def test_secrets_come_as_files() -> None:
    for _, pod in pods(ALL):
        assert "secretRef" not in str(pod)
        assert "secretKeyRef" not in str(pod)
    assert not any("REDIS_URL" in name for name in settings("base/kustomization.yaml"))


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted: dict[str, str] = selector["matchLabels"]
    return wanted.items() <= labels.items()


def test_budgets_services_and_policies_select_what_runs() -> None:
    templates = [one["spec"]["template"]["metadata"]["labels"] for one in ALL if one["kind"] == "Deployment"]
    redis = only(ALL, "StatefulSet", "redis")["spec"]["template"]["metadata"]["labels"]
    for one in BASE:
        if one["kind"] == "PodDisruptionBudget":
            assert sum(selects(one["spec"]["selector"], labels) for labels in templates) == 1
            assert one["spec"]["maxUnavailable"] == 1
        if one["kind"] == "NetworkPolicy":
            assert sum(selects(one["spec"]["podSelector"], labels) for labels in templates) == 1
    to_redis = only(BASE, "NetworkPolicy")["spec"]["egress"][1]
    assert selects(to_redis["to"][0]["podSelector"], redis)


def ports_of(rules: list[Manifest]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_the_network_lets_through_what_is_needed_and_nothing_else() -> None:
    server, envoy = (only(BASE, "NetworkPolicy", name)["spec"] for name in ("mfalcon", "mfalcon-envoy"))
    assert [ports_of([rule]) for rule in server["ingress"]] == [{50051, 8080}, {9090}]
    assert ports_of(server["egress"]) == {53, 6379}
    assert ports_of(envoy["ingress"]) == {8000}
    assert ports_of(envoy["egress"]) == {53, 50051, 8080}
    for policy in (server, envoy):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert all(peer for rule in policy["ingress"] for peer in rule["from"])


def test_admin_is_for_operators_alone() -> None:
    (policy,) = read("components/admin/network.yaml")
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"mfalcon-operator": "true"}}}]
    (component,) = read("components/admin/kustomization.yaml")
    operations = yaml.safe_load(component["patches"][0]["patch"])
    given = {one["value"]["name"].removeprefix("MFALCON_").lower() for one in operations if "env" in one["path"]}
    assert given == {"admin_host", "admin_port"} & ServerConfig.model_fields.keys()


def test_it_scales_by_the_queue_and_never_to_nothing() -> None:
    assert SCALED["minReplicaCount"] == AUTOSCALER["minReplicas"] == 3
    assert SCALED["maxReplicaCount"] == AUTOSCALER["maxReplicas"]
    assert "idleReplicaCount" not in SCALED
    shown = {family.name for family in ServerMetrics().registry.collect()}
    adapter = (ROOT / "components/hpa/adapter.yaml").read_text()
    asked = " ".join(trigger["query"] for trigger in TRIGGERS.values()) + adapter.replace("as: mfalcon_device_busy", "")
    names = {name.removesuffix("_sum") for name in re.findall(r"\bmfalcon_\w+", asked)}
    assert names == {"mfalcon_queue_seconds", "mfalcon_slice_seconds"} & shown
    assert "cpu" not in str(AUTOSCALER["metrics"]) + str(SCALED["triggers"])
    # One target in two units: seconds with Kubernetes' own suffix for a thousandth, and milliseconds.
    by_pods = {one["pods"]["metric"]["name"]: one["pods"]["target"]["averageValue"] for one in AUTOSCALER["metrics"]}
    assert by_pods["mfalcon_queue_seconds"] == TRIGGERS["queue-ms"]["threshold"] + "m"
    assert TRIGGERS["queue-ms"]["query"].startswith("1000 * ")
    assert by_pods["mfalcon_device_busy"] == f"{round(1000 * float(TRIGGERS['devices-busy']['threshold']))}m"


def test_both_autoscalers_give_replicas_back_slowly() -> None:
    behavior: Any = AUTOSCALER["behavior"]
    assert SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 1800
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 600}]
    for component in ("hpa", "keda"):
        (patch,) = read(f"components/{component}/kustomization.yaml")[0]["patches"]
        assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]


def test_the_operator_gets_the_same_rules() -> None:
    rules = yaml.safe_load((ROOT.parent / "prometheus/rules.yaml").read_text())
    (manifest,) = read("components/monitoring/rules.yaml")
    assert manifest["spec"] == rules


def test_the_scrape_job_has_the_name_that_the_rules_expect() -> None:
    (monitor,) = read("components/monitoring/monitor.yaml")
    service = only(BASE, "Service")
    assert selects(monitor["spec"]["selector"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "mfalcon"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render(overlay: str) -> None:
    program = kubectl()
    if program is None:
        pytest.skip("kubectl is not installed (Debian's package kubernetes-client)")
    manifests = rendered(program, overlay)
    assert {one["metadata"].get("namespace") for one in manifests if one["kind"] != "Namespace"} == {"mfalcon"}
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    maps = {one["metadata"]["name"]: one["data"] for one in manifests if one["kind"] == "ConfigMap"}
    # Their names end in a hash of what they hold, so that a change rolls the pods.
    assert maps[container["envFrom"][0]["configMapRef"]["name"]]["MFALCON_CHECKPOINT"]
    envoy = only(manifests, "Deployment", "mfalcon-envoy")["spec"]["template"]["spec"]
    assert maps[envoy["volumes"][0]["configMap"]["name"]].keys() == {"envoy.yaml"}
    assert "replicas" not in only(manifests, "Deployment")["spec"]
    assert all(":" in one["image"] for _, running in pods(manifests) for one in running["containers"])
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
    assert any(port["name"] == "admin" for port in container["ports"]) == (overlay == "redis-cluster")
