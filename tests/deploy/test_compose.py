"""deploy/compose.yaml: what a read of it can hold. `make compose-test` runs it."""

from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_every_mounted_file_is_there() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert [path for path, *_ in mounts if path.startswith(".") and not (DEPLOY / path).exists()] == []


def test_only_this_machine_reaches_a_port() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in SERVICES["mfalcon"]
    assert "ports" not in SERVICES["redis"]


def test_redis_keeps_logs_and_may_evict_states() -> None:
    command = SERVICES["redis"]["command"].split()
    assert command[command.index("--maxmemory-policy") + 1] == "volatile-lfu"
    assert command[command.index("--appendonly") + 1] == "yes"


def test_a_replica_may_finish_its_drain_before_it_is_killed() -> None:
    replica = SERVICES["mfalcon"]
    linger_s, drain_s = float(replica["environment"]["MFALCON_DRAIN_LINGER_S"]), 10.0
    assert float(replica["stop_grace_period"].removesuffix("s")) > linger_s + drain_s
    assert replica["read_only"]
    assert replica["deploy"]["replicas"] == 3


def test_no_image_is_of_any_version() -> None:
    for service in SERVICES.values():
        name = service["image"].partition(":-")[2].rstrip("}")
        assert ":" in name
        assert not name.endswith(":latest")


def test_one_server_keeps_its_histories_on_a_volume() -> None:
    content = yaml.safe_load((DEPLOY / "compose-one.yaml").read_text())
    (server,) = content["services"].values()
    (volume,) = server["volumes"]
    name, _, place = volume.partition(":")
    assert name in content["volumes"]
    assert server["environment"]["MFALCON_LOG_DIR"].startswith(f"{place}/")
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert server["read_only"]
