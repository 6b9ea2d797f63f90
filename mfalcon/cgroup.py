"""What a container may take: the limits of the control groups that this process is in, of either version."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60
"""Version 1 says 2**63 less a page where there is none."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where the system tells them: the file tree, and the file that says which of its directories are ours.

    A limit holds for a group and for all groups inside it, so each directory on the way to ours counts. A container
    often sees only its own group, as the root.
    """

    root: Path = _ROOT
    membership: Path = _MEMBERSHIP

    def cpus(self) -> float | None:
        """The least limit of processor time, in cores; None where there is none."""
        quotas = [_quota(group, "cpu.max") for group in self._groups("")]
        quotas += [_quota(group, "cpu.cfs_quota_us", "cpu.cfs_period_us") for group in self._groups("cpu")]
        return min((quota for quota in quotas if quota is not None), default=None)

    def memory_left(self) -> int | None:
        """Bytes that may still be taken before a process of the group is killed; None where there is no limit.

        What the page cache holds and has not used lately is given back before that.
        """
        left = [_left(group, "memory.max", "memory.current", "inactive_file") for group in self._groups("")]
        left += [
            _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for group in self._groups("memory")
        ]
        return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)

    def _groups(self, controller: str) -> Iterator[Path]:
        """The directories from a hierarchy's root to our group; controller: of version 1, "" is version 2."""
        group = self.root / controller
        yield group
        for part in self._path_of(controller).parts:
            group /= part
            if not group.is_dir():
                return
            yield group

    def _path_of(self, controller: str) -> Path:
        """Our group inside a hierarchy, relative to its root."""
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            return Path()
        for line in lines:
            match line.split(":", 2):
                case [_, controllers, path] if controller in controllers.split(","):
                    return Path(path.lstrip("/"))
        return Path()


def _quota(group: Path, *names: str) -> float | None:
    try:
        quota, period = " ".join((group / name).read_text() for name in names).split()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _left(group: Path, limit_name: str, used_name: str, reclaimable_name: str) -> int | None:
    try:
        limit = int((group / limit_name).read_text())
        used = int((group / used_name).read_text()) - counter(group / "memory.stat", reclaimable_name)
    except (OSError, ValueError):  # there is no such group, or the limit is "max"
        return None
    return max(0, limit - used) if limit < _NO_LIMIT else None


def counter(path: Path, name: str) -> int:
    """The number behind a name in a file of lines `name number`. Raises ValueError if there is none."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    raise ValueError(f"{path} has no {name}")
