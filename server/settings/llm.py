"""Settings of the language model that may reorder the top."""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator


class LlmSettings(BaseModel):
    """Where it is and how long it is waited for. docs/rerank.md explains."""

    llm_url: str | None = Field(
        default=None,
        description="API of an OpenAI-compatible language model, up to and with /v1, that may reorder the top; needs "
        "the extra: llm. It is sent titles and what users did, never who they are. Off if not given.",
    )
    llm_model: str | None = Field(
        default=None, min_length=1, max_length=256, description="Name of the language model at llm_url."
    )
    llm_key_file: Path | None = Field(
        default=None, description="File with the key that is sent to llm_url as a bearer token."
    )
    llm_timeout_ms: int = Field(
        default=2_000,
        ge=10,
        le=60_000,
        description="Longest wait for the language model, both passes together, in ms; who is in a hurry waits less.",
    )
    llm_concurrency: int = Field(
        default=8, ge=1, le=256, description="Requests that may wait for the language model; others keep their order."
    )

    @model_validator(mode="after")
    def _a_language_model_has_an_address_and_a_name(self) -> Self:
        if self.llm_url is None:
            for name in ("llm_model", "llm_key_file"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: got {getattr(self, name)!s}, must not be given without llm_url")
            return self
        if self.llm_model is None:
            raise ValueError("llm_model: got nothing, must be given with llm_url")
        try:
            url = urlsplit(self.llm_url)
            is_good = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            is_good = False
        if not is_good or url.username is not None or url.query or url.fragment or not self.llm_url.isprintable():
            shown = "an address with a user" if "@" in self.llm_url else repr(self.llm_url[:80])
            raise ValueError(
                f"llm_url: got {shown}, must be http://HOST:PORT/v1 or https with no user, query or fragment; the key "
                "is in llm_key_file"
            )
        return self
