"""How much an event log on one machine may hold, and who goes when it is full."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mfalcon.errors import Overloaded

WhenFull: TypeAlias = Literal["refuse", "evict"]
_KNOWN = 16


@dataclass(frozen=True, slots=True)
class LogBudget:
    """Bounds of a log; 0 for none.

    max_bytes: of memory, or of the file without its journal. max_users: who have a history. max_idle_s: users who were
    not asked for so long are deleted. when_full: at the first two, refuse new users, or delete the users who were not
    asked for longest. Of the bytes a sixteenth is left to the users who are known: if they fill that too, the one who
    was not asked for longest is deleted all the same, since neither they nor the memory can wait.
    """

    max_bytes: int = 0
    max_users: int = 0
    max_idle_s: float = 0.0
    when_full: WhenFull = "refuse"

    def full(self, num_bytes: int, num_users: int) -> str:
        """Which bound leaves no room for one more user: "bytes", "users" or ""."""
        if self.max_users and num_users >= self.max_users:
            return "users"
        kept = self.max_bytes // _KNOWN if self.when_full == "refuse" else 0
        return "bytes" if self.max_bytes and num_bytes >= self.max_bytes - kept else ""

    def over(self, num_bytes: int, num_users: int) -> str:
        """By which bound somebody must go: "bytes", "users" or ""."""
        if self.max_users and num_users > self.max_users:
            return "users"
        return "bytes" if self.max_bytes and num_bytes > self.max_bytes else ""

    def refusal(self, bound: str, num_bytes: int, num_users: int) -> Overloaded:
        """What a new user is told."""
        if bound == "users":
            text = f"log_max_users: the event log holds {num_users} users, must be below {self.max_users}"
        else:
            text = (
                f"log_budget_mb: the event log takes {num_bytes >> 20} MiB of {self.max_bytes >> 20}, of which a "
                f"sixteenth is for users who have a history"
            )
        return Overloaded(f"{text}; a new user is refused, nothing was written", elsewhere=False)


def budget_of_directory(directory: Path) -> int:
    """Bytes of a log in a file where nobody says how many: 80 % of what its disk has free and it has already."""
    present = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    disk = os.statvfs(present)
    have = sum(path.stat().st_size for path in directory.iterdir()) if directory.is_dir() else 0
    return (disk.f_bavail * disk.f_frsize + have) * 4 // 5
