"""Settings of logs and traces."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class ObservabilitySettings(BaseModel):
    """What is written down of requests, where, and under which names."""

    log_user_ids: Literal["hashed", "plain"] = Field(
        default="hashed",
        description="How users appear in logs, traces and captures: hashed (by a keyed hash of the id) or plain.",
    )
    log_key_file: Path | None = Field(
        default=None,
        description="The key of that hash (16 bytes or more), read at the start, so that replicas and later servers "
        "give a user the same name; without it the key is random and ends with the server.",
    )
