"""Settings of who may ask."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, Field, model_validator

from server.access.caller import Right
from server.settings.kinds import File


class AccessSettings(BaseModel):
    """Who may ask, and what proves who it is."""

    tokens_file: File | None = Field(
        default=None,
        description="TOML file of callers: their rights, hashes of their tokens, names of their certificates; it is "
        "read again when it changes. If neither this nor jwks_file is given, everybody may do everything. "
        "docs/security.md explains.",
    )
    jwks_file: File | None = Field(
        default=None,
        description="JSON file of public keys (JWKS) by which JSON Web Tokens are verified; it is read again when it "
        "changes. Needs the extra: jwt.",
    )
    jwt_issuer: str | None = Field(
        default=None, min_length=1, max_length=1_024, description="What a JSON Web Token must name as its issuer (iss)."
    )
    jwt_audience: str | None = Field(
        default=None,
        min_length=1,
        max_length=1_024,
        description="What a JSON Web Token must name as its audience (aud).",
    )
    jwt_rights_claim: str = Field(
        default="scope",
        min_length=1,
        max_length=256,
        description="Claim of a JSON Web Token that holds its rights: a list, or text with spaces; dots make a path.",
    )
    jwt_rights: str = Field(
        default=" ".join(f"mfalcon:{right}={right}" for right in Right),
        max_length=100_000,
        description="What a value of that claim allows: pairs VALUE=RIGHT with spaces between them.",
    )
    jwt_leeway_s: float = Field(
        default=10.0, ge=0, le=300, description="Seconds by which the issuer's clock may differ from ours."
    )

    @property
    def rights_of_claims(self) -> Mapping[str, frozenset[Right]]:
        """What each value of the claim allows. Raises ValueError for a pair that is none."""
        found: dict[str, frozenset[Right]] = {}
        for pair in self.jwt_rights.split():
            value, separator, right = pair.rpartition("=")
            if not separator or not value or right not in set(Right):
                raise ValueError(f"jwt_rights: got {pair[:80]!r}, must be VALUE=RIGHT with one of {', '.join(Right)}")
            found[value] = found.get(value, frozenset()) | {Right(right)}
        return found

    @model_validator(mode="after")
    def _rights_are_rights(self) -> Self:
        assert self.rights_of_claims is not None
        return self

    @model_validator(mode="after")
    def _keys_have_an_issuer_and_an_audience(self) -> Self:
        for name in ("jwt_issuer", "jwt_audience"):
            if (getattr(self, name) is None) != (self.jwks_file is None):
                got, must = ("nothing", "given with") if self.jwks_file is not None else ("a name", "given only with")
                raise ValueError(f"{name}: got {got}, must be {must} jwks_file")
        return self
