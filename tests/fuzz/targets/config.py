"""Any bytes as the configuration file of a server."""

from pathlib import Path

from mfalcon.errors import ConfigError
from server.config import ServerConfig, load_config
from tests.fuzz.files import directory


def seeds() -> list[bytes]:
    """Settings of every kind, and every setting with its default."""
    defaults = []
    for name, field in ServerConfig.model_fields.items():
        value = field.default
        if isinstance(value, bool):
            defaults.append(f"{name} = {str(value).lower()}")
        elif isinstance(value, int | float):
            defaults.append(f"{name} = {value}")
        elif isinstance(value, str):
            defaults.append(f'{name} = "{value}"')
    return [
        b'checkpoint = "here"\ngrpc_port = 0\nkv_budget_mb = "auto"\nmicrobatch = 512\n',
        b'[[models]]\nname = "a"\ncheckpoint = "x"\n[[models]]\nname = "b"\ncheckpoint = "y"\nbackend = "reference"\n'
        b'[[ensembles]]\nname = "e"\nmerge = "probability"\nbudget_ms = 70\nmin_members = 1\n'
        b'members = [{model = "a", weight = 0.5}, {model = "b", weight = 0.5, address = "h:1"}]\n',
        b'checkpoint = "x"\nredis_url = "redis://user:secret@h:1/0"\nllm_url = "http://h/v1"\nlog_dir = "d"\n',
        "\n".join(defaults).encode(),
    ]


def target(data: bytes) -> None:
    """A configuration or a ConfigError."""
    path: Path = directory("config") / "server.toml"
    path.write_bytes(data)
    try:
        load_config(path, {})
    except ConfigError as error:
        if "secret" in str(error) and b"secret" in data:
            raise AssertionError(f"a refusal repeats a password: {error}") from error
