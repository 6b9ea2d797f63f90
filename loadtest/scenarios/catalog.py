"""What each scenario needs beside its Locust file."""

from dataclasses import dataclass
from pathlib import Path

from mfalcon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """replicas: servers on one Redis; several stand behind Envoy. flags: of each. locust: options of the scenario.

    restarts: while it runs, one replica after the other is drained and started anew.
    """

    replicas: int = 1
    flags: tuple[str, ...] = ()
    locust: tuple[str, ...] = ()
    restarts: bool = False


SCENARIOS: dict[str, Setting] = {
    "steady": Setting(),
    "ramp": Setting(),
    "spike": Setting(),
    "cold_start": Setting(),
    "append_heavy": Setting(),
    # A state of 200 events of the demo's model takes some .2 MiB, one of shape S 1.2: both exceed the pool.
    "cache_thrash": Setting(flags=("--kv-budget-mb", "16"), locust=("--zipf", "0", "--num-users-space", "400")),
    "candidate_sweep": Setting(locust=("--clients", "5")),
    "hot_user": Setting(),
    "mixed": Setting(),
    "repeat_visits": Setting(),
    "rolling_restart": Setting(replicas=2, restarts=True),
}


def locustfile(name: str) -> Path:
    """The scenario's file. Raises ConfigError if there is none."""
    if name not in SCENARIOS:
        raise ConfigError(f"scenario: got {name!r}, must be one of {', '.join(SCENARIOS)}")
    return Path(__file__).with_name(f"{name}.py")
