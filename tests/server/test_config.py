"""Sources, their order, and what a mistake is answered with."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from mfalcon.errors import ConfigError
from server.config import ServerConfig, load_config

FLAGS = {"checkpoint": "somewhere"}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_defaults() -> None:
    config = load_config(None, FLAGS)
    assert config.checkpoint == Path("somewhere")
    assert (config.grpc_host, config.grpc_port, config.http_port) == ("127.0.0.1", 50_051, 8_080)
    assert config.microbatch == "auto"
    assert config.max_candidates == 16_384


def test_flags_over_environment_over_file_over_defaults(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("grpc_port = 1\nhttp_port = 1\nqueue_size = 1\n")
    monkeypatch.setenv("MFALCON_GRPC_PORT", "2")
    monkeypatch.setenv("MFALCON_HTTP_PORT", "2")
    config = load_config(toml, FLAGS | {"grpc_port": 3, "http_port": None})
    assert (config.grpc_port, config.http_port, config.queue_size, config.threads) == (3, 2, 1, 0)


def test_every_setting_can_come_from_each_source(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optional = {
        "model_name": "m",
        "redis_url": "redis://:pw@h",
        "event_log": "file",
        "log_dir": "d",
        "log_budget_mb": 0,
        "redis_secret_file": "s",
        "redis_former_secret_file": "f",
        "otlp_endpoint": "http://h:1",
        "llm_url": "http://h:1/v1",
        "llm_model": "m",
        "llm_key_file": "k",
        "admin_port": 7,
        "metrics_port": 8,
        "log_key_file": "k",
        "tokens_file": "/t",
        "capture_dir": "c",
        "jwks_file": "/j",
        "jwt_issuer": "i",
        "jwt_audience": "a",
        "tls_cert_file": "/c",
        "tls_key_file": "/k",
        "tls_client_ca_file": "/a",
        "items_dir": "/i",
        "graph_dir": "/g",
        "items_policy": "bounded",
        "items_keep_s": 2.5,
    }
    config = load_config(None, {**FLAGS, "microbatch": 64, "kv_budget_mb": 0, **optional})
    values = config.model_dump(mode="json") | optional
    assert None not in values.values()
    toml.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()))
    assert load_config(toml, {}).model_dump() == config.model_dump()
    toml.write_text("")
    for name, value in values.items():
        monkeypatch.setenv(f"MFALCON_{name.upper()}", str(value))
    assert load_config(toml, {}).model_dump() == config.model_dump()


def test_every_setting_is_explained() -> None:
    assert all(field.description for field in ServerConfig.model_fields.values())


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        load_config(None, FLAGS).grpc_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "checkpoint, models: got neither, must be a checkpoint or [[models]]"),
        ({"grpc_port": 65_536}, "grpc_port: got 65536, must be less than or equal to 65535"),
        ({"grpc_port": "x"}, "grpc_port: got 'x', must be a valid integer"),
        ({"dtype": "float8"}, "dtype: got 'float8', must be 'float32', 'bfloat16', 'float16' or 'float64'"),
        ({"capture_sample": 1.5}, "capture_sample: got 1.5, must be less than or equal to 1"),
        ({"capture_mb": 100}, "capture_file_mb: got 64, must be at most 50 while capture_mb is 100: two files must"),
        ({"device": "tpu"}, "device: got 'tpu', must be cpu, cuda or cuda:N"),
        ({"kv_dtype": "fp4"}, "kv_dtype: got 'fp4', must be 'auto', 'int8', 'fp8' or 'fp8-products'"),
        ({"device_budget_mb": -1}, "device_budget_mb: got -1"),
        ({"microbatch": 0}, "microbatch: got 0, must be auto or a number of at least 1"),
        ({"kv_budget_mb": "all"}, "kv_budget_mb: got 'all', must be auto or a number of at least 0"),
        ({"drain_seconds": float("nan")}, "drain_seconds: got nan, must be a finite number"),
        ({"max_user_id_bytes": 257}, "max_user_id_bytes: got 257, must be less than or equal to 256"),
        ({"max_candidates": 1_000_000}, "max_candidates: got 1000000, must be at most 524288"),
        ({"chekpoint": "x"}, "chekpoint: there is no such setting; did you mean checkpoint?"),
        ({"event_log": "redis"}, "event_log: got redis, must be memory, file or auto while redis_url is not given"),
        ({"event_log": "embedded"}, "event_log: got 'embedded', must be 'auto', 'memory', 'file' or 'redis'"),
        ({"event_log": "file"}, "event_log: got file, must not be file while log_dir is not given"),
        ({"event_log": "memory", "log_dir": "d"}, "log_dir: got d, must not be given while event_log is memory"),
        (
            {"redis_url": "redis://h", "log_dir": "d"},
            "event_log: got auto, must be file or redis while both redis_url and log_dir are given",
        ),
        (
            {"log_dir": "d", "append_durability": "replica"},
            "append_durability: got replica, must be memory or fsync while the event log is in a file: no",
        ),
        ({"append_durability": "fsync"}, "append_durability: got fsync, must be memory while the event log is in this"),
        ({"log_budget_mb": "some"}, "log_budget_mb: got 'some', must be auto or a number of at least 0"),
        ({"log_when_full": "drop"}, "log_when_full: got 'drop', must be 'refuse' or 'evict'"),
        ({"redis_secret_file": "s"}, "redis_secret_file: got a file, must not be given without redis_url"),
        ({"llm_url": "http://h/v1"}, "llm_model: got nothing, must be given with llm_url"),
        ({"llm_model": "m"}, "llm_model: got m, must not be given without llm_url"),
        ({"llm_key_file": "k"}, "llm_key_file: got k, must not be given without llm_url"),
        ({"llm_url": "h:1/v1", "llm_model": "m"}, "llm_url: got 'h:1/v1', must be http://HOST:PORT/v1 or https"),
        ({"llm_url": "ftp://h/v1", "llm_model": "m"}, "llm_url: got 'ftp://h/v1', must be http://HOST:PORT/v1"),
        ({"llm_url": "http://h:x/v1", "llm_model": "m"}, "llm_url: got 'http://h:x/v1', must be http://HOST:PORT/v1"),
        ({"llm_url": "http://h/v1?k=1", "llm_model": "m"}, "llm_url: got 'http://h/v1?k=1', must be http://HOST:PORT"),
        ({"llm_url": "http://me:pw@h/v1", "llm_model": "m"}, "llm_url: got an address with a user, must be http://"),
        ({"llm_timeout_ms": 9}, "llm_timeout_ms: got 9, must be greater than or equal to 10"),
        ({"llm_concurrency": 0}, "llm_concurrency: got 0, must be greater than or equal to 1"),
        (
            {"redis_prefix": "a{b}"},
            "redis_prefix: got 'a{b}', must be 1 to 64 characters, no braces and no white space",
        ),
        ({"model_name": ""}, "model_name: got '', must be text of at least 1 character"),
        ({"grpc_port": -1, "http_port": -1}, "http_port: got -1"),
    ],
)
def test_bad_flags(flags: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, (FLAGS if flags else {}) | flags)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grpc_prot = 1", "grpc_prot: there is no such setting; did you mean grpc_port?"),
        ("grpc_port = 'x'", "grpc_port: got 'x', must be a valid integer"),
        ("[server]\ngrpc_port = 1", "server: there is no such setting"),
        ("grpc_port =", "server.toml: not readable: Invalid value"),
    ],
)
def test_bad_files(toml: Path, text: str, says: str) -> None:
    toml.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(toml, FLAGS)
    assert says in str(refused.value)


def test_missing_file(toml: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.toml: there is no such file"):
        load_config(toml, FLAGS)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("MFALCON_CHEKPOINT", "MFALCON_CHEKPOINT: there is no such setting; did you mean checkpoint?"),
        ("MFALCON_NONSENSE", "MFALCON_NONSENSE: there is no such setting"),
        ("MFALCON_GRPC_PORT", "grpc_port: got 'x', must be a valid integer"),
        ("MFALCON_MODELS", 'error parsing value for field "models"'),
    ],
)
def test_bad_variables(monkeypatch: pytest.MonkeyPatch, variable: str, says: str) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigError) as refused:
        load_config(None, FLAGS)
    assert says in str(refused.value)


def test_variables_that_kubernetes_sets_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"):
        monkeypatch.setenv(f"MFALCON_{name}", "tcp://10.0.0.1:50051")
    load_config(None, FLAGS)


TABLE = '[[models]]\nname = "{name}"\ncheckpoint = "{name}"\n'


def test_several_models_share_the_memory(toml: Path) -> None:
    toml.write_text(TABLE.format(name="a") + "share = 0.5\n" + TABLE.format(name="b") + TABLE.format(name="c"))
    served = load_config(toml, {}).served
    assert [(model.name, model.checkpoint, model.share) for model in served] == [
        ("a", Path("a"), 0.5),
        ("b", Path("b"), 0.25),
        ("c", Path("c"), 0.25),
    ]
    (alone,) = load_config(None, FLAGS | {"model_name": "main"}).served
    assert (alone.name, alone.share) == ("main", 1.0)


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        (TABLE.format(name="a"), {"checkpoint": "b"}, "checkpoint, models: got both, must be"),
        (TABLE.format(name="a"), {"model_name": "b"}, "model_name: got a name, must not be given beside"),
        (TABLE.format(name="a") + "share = 0.7\n" + TABLE.format(name="b") + "share = 0.7\n", {}, "shares of 1.4"),
        (TABLE.format(name="a") + "share = 1.0\n" + TABLE.format(name="b"), {}, "must leave every model a part"),
        (TABLE.format(name="a") + "shares = 1\n", {}, "models.0.shares"),
    ],
)
def test_bad_models(toml: Path, text: str, flags: dict[str, object], says: str) -> None:
    toml.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(toml, flags)
    assert says in str(refused.value)


ENSEMBLE = """
[[ensembles]]
name = "both"
merge = "probability"
merge_budget_ms = 70
min_members = 2
members = [{model = "a", weight = 0.7}, {model = "b", address = "dns:///replica:50051"}]
calibration = [{task = "like", scale = 0.9, shift = -0.1}]
"""


def test_an_ensemble_of_models_here_and_elsewhere(toml: Path) -> None:
    toml.write_text('redis_url = "redis://h"\n' + TABLE.format(name="a") + ENSEMBLE)
    (ensemble,) = load_config(toml, {}).ensembles
    assert (ensemble.name, ensemble.merge, ensemble.merge_budget_ms, ensemble.min_members) == (
        "both",
        "probability",
        70,
        2,
    )
    assert [(m.model, m.address, m.weight) for m in ensemble.members] == [
        ("a", None, 0.7),
        ("b", "dns:///replica:50051", 1.0),
    ]
    assert [(c.task, c.scale, c.shift) for c in ensemble.calibration] == [("like", 0.9, -0.1)]


@pytest.mark.parametrize(
    ("was", "is_now", "says"),
    [
        ("min_members = 2", "min_members = 3", "ensembles: both: min_members: got 3, must be at most 2"),
        ("min_members = 2", "min_members = 0", "ensembles[0].min_members: got 0"),
        ("weight = 0.7", "weight = 0.0", "members[0].weight: got 0.0, must be greater than 0"),
        ("weight = 0.7", "weight = nan", "members[0].weight"),
        ('"probability"', '"mean"', "ensembles[0].merge: got 'mean', must be 'logit' or 'probability'"),
        ("merge_budget_ms = 70", "merge_budget_ms = 0", "merge_budget_ms: got 0"),
        ("scale = 0.9", "scale = 0.0", "calibration[0].scale: got 0.0, must be greater than 0"),
        ("shift = -0.1}", 'shift = -0.1}, {task = "like"}', "calibration: got task 'like' twice"),
        ("members = [{", "members = [{", "got address 'dns:///replica:50051', must not be given unless the event log"),
        (', {model = "b", address = "dns:///replica:50051"}', "", "ensembles: both: members: got 1, must be 2 to 16"),
        ("weight = 0.7", "wait = 0.7", "ensembles.0.members.0.wait: there is no such setting"),
    ],
)
def test_bad_ensembles(toml: Path, was: str, is_now: str, says: str) -> None:
    log = "" if "address" in says else 'redis_url = "redis://h"\n'
    assert was in ENSEMBLE
    toml.write_text(log + TABLE.format(name="a") + ENSEMBLE.replace(was, is_now))
    with pytest.raises(ConfigError) as refused:
        load_config(toml, {})
    assert says in str(refused.value)
