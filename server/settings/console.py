"""Settings of the pages for people: the console, and the description of the HTTP API."""

from pydantic import BaseModel, Field


class ConsoleSettings(BaseModel):
    """Which pages there are."""

    console: bool = Field(
        default=True,
        description="Serve the console, a page for people, at / of the HTTP port: live figures, ranks, histories.",
    )
    console_users: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="Ids of users that the console offers as examples to whoever may rank: for a demo, not for people.",
    )
    api_docs: bool = Field(
        default=True, description="Serve the description of the HTTP API, /openapi.json, and a page of it, /docs."
    )
