"""A caller: who asks, and what he may do."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mfalcon.errors import PermissionDenied


class Right(StrEnum):
    """What a caller may be allowed to do; `admin` holds all the others."""

    RANK = "rank"
    APPEND = "append"
    READ = "read"
    DELETE = "delete"
    METRICS = "metrics"
    ADMIN = "admin"


ALL: Final = frozenset(Right)

RIGHT_OF: Final = {
    "rank": Right.RANK,
    "rank_batch": Right.RANK,
    "rank_stream": Right.RANK,
    "interests": Right.RANK,
    "prefill": Right.RANK,
    "get_model": Right.RANK,
    "list_models": Right.RANK,
    "model_infer": Right.RANK,
    "model_ready": Right.RANK,
    "model_metadata": Right.RANK,
    "server_metadata": Right.RANK,
    "append_events": Right.APPEND,
    "append_batch": Right.APPEND,
    "get_history": Right.READ,
    "delete_user": Right.DELETE,
}
"""By verb: the right that a request needs. A verb that is not here cannot be served at all."""


def held(rights: frozenset[Right]) -> frozenset[Right]:
    """The rights, and those that they bring with them."""
    return ALL if Right.ADMIN in rights else rights


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. name: one of the file of callers, or "jwt", so that there are few; it is fit for logs and labels.
    rights: all that he holds.
    """

    name: str
    rights: frozenset[Right]

    def must(self, right: Right) -> None:
        """Raise PermissionDenied unless the caller has this right."""
        if right not in self.rights:
            had = ", ".join(sorted(self.rights)) or "none"
            raise PermissionDenied(f"caller {self.name}: has the rights {had}, must have {right}")


ANYBODY: Final = Caller("", ALL)
"""Who asks a server that looks at no credentials."""
