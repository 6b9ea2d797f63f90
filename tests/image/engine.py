"""Building and running images without a daemon: Debian's buildah, podman and runc, as root, in a storage of our own.

Where no registry answers, the base image is made by debootstrap under the name that the Dockerfile has. RUN steps get
what the pip of this machine is configured with: certificates, and folders of wheels.
"""

import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("buildah", "podman", "runc", "debootstrap")
_LOCAL_BASE = "localhost/mfalcon-base"
_BUILD_S = 3_000
_PULL_S = 60
_BOUNDED = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
_MOST = 16_384


def missing() -> str | None:
    """Why images cannot be built here, None if they can."""
    if os.geteuid() != 0:
        return "images are built and run as root here: sudo make image-test"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"not installed: {', '.join(absent)} (apt-get install {' '.join(absent)})" if absent else None


@dataclass(frozen=True, slots=True)
class Engine:
    """An image storage below a directory."""

    storage: Path

    def run(self, *words: str, timeout: float = 120, check: bool = True, errors: int = subprocess.PIPE) -> str:
        """What a podman command writes to standard output; errors: where it writes what it complains of."""
        command = ["podman", *self.options(), "--runtime", "runc", "--cgroup-manager", "cgroupfs", *words]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=timeout, check=False)
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {result.returncode}: {result.stderr[-4_000:]}")
        return result.stdout.strip()

    def logs(self, name: str) -> str:
        """What a container has written, to either output."""
        return self.run("logs", name, errors=subprocess.STDOUT)

    def base(self, name: str) -> str:
        """The image that the Dockerfile begins with, pulled or else made by debootstrap."""
        if self.run("images", "--quiet", _LOCAL_BASE):
            return _LOCAL_BASE
        pulled = subprocess.run(
            ["podman", *self.options(), "pull", "--quiet", name], capture_output=True, timeout=_PULL_S, check=False
        )
        if pulled.returncode == 0:
            return name
        tree = self.storage / "base"
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,python3-pip,ca-certificates"]
        log = self.storage / "debootstrap.log"
        with log.open("w") as file:
            made = subprocess.run(
                [*command, "bookworm", str(tree)], stdout=file, stderr=file, check=False, timeout=1_800
            )
        if made.returncode:
            raise RuntimeError(f"no registry answers, and debootstrap failed: see {log}")
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        (tree / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
        archive = self.storage / "base.tar"
        subprocess.run(["tar", "-C", str(tree), "--exclude=./var/cache/apt", "-cf", str(archive), "."], check=True)
        self.run("import", "--quiet", str(archive), _LOCAL_BASE)
        shutil.rmtree(tree)
        archive.unlink()
        return _LOCAL_BASE

    def build(self, file: Path, target: str, tag: str, arguments: dict[str, str], context: Path = ROOT) -> float:
        """Build an image; returns seconds. The log is beside the storage."""
        begun, log = time.monotonic(), self.storage / f"build-{tag.replace(':', '-')}.log"
        scratch = self.storage / "tmp"
        scratch.mkdir(exist_ok=True)
        command = [
            "buildah",
            *self.options(),
            "build",
            "--layers",
            "--format",
            "docker",
            "--isolation",
            "chroot",
            "--pull-never",
        ]
        command += [word for source, place in pip_mounts(self.storage) for word in ("-v", f"{source}:{place}:ro")]
        command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        command += ["--target", target, "--tag", tag, "--file", str(file), str(context)]
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with log.open("w") as out:
            made = subprocess.run(command, stdout=out, stderr=out, env=environment, timeout=_BUILD_S, check=False)
        if made.returncode:
            raise RuntimeError(f"build of {tag} failed ({log}):\n{log.read_text()[-3_000:]}")
        return time.monotonic() - begun

    def program(self) -> Path:
        """A podman for programs that call it: one with our storage."""
        path = self.storage / "podman"
        words = shlex.join(["podman", *self.options(), "--runtime", "runc", "--cgroup-manager", "cgroupfs"])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)
        return path

    def options(self) -> Sequence[str]:
        """Where podman and buildah keep their images."""
        places = ("--root", str(self.storage / "images"), "--runroot", str(self.storage / "run"))
        return ("--storage-driver", "overlay" if _has_overlay(self.storage) else "vfs", *places)


def limits_of_processes() -> tuple[str, ...]:
    """Bounds that runc may set where root may not raise its own: podman would ask for the highest of all."""
    least = [min(_MOST, hard) if hard >= 0 else _MOST for hard in map(_hard, _BOUNDED.values())]
    return tuple(
        word for name, most in zip(_BOUNDED, least, strict=True) for word in ("--ulimit", f"{name}={most}:{most}")
    )


def _hard(kind: int) -> int:
    return resource.getrlimit(kind)[1]


def pip_mounts(storage: Path) -> list[tuple[Path, Path]]:
    """What pip needs to fetch as it does here: a file of its settings, the certificates and folders that these name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in ("cert", "find-links", "index-url", "extra-index-url", "trusted-host", "proxy"):
            settings[name] = value.strip("'\"").replace("\\n", " ")
    file = storage / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    named = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    paths = sorted({_whole(Path(word)) for word in named if word.startswith("/") and Path(word).exists()})
    return [(file, Path("/etc/pip.conf")), *((path.resolve(), path) for path in paths)]


def _whole(path: Path) -> Path:
    """An index's pages name files beside their own folder."""
    return path.parent if path.name == "simple" else path


def _has_overlay(storage: Path) -> bool:
    """Whether the kernel lays directories over each other here; copies of whole trees (vfs) take long."""
    marker = storage / "driver"
    if not marker.exists():
        places = [storage / "probe" / name for name in ("lower", "upper", "work", "merged")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        lower, upper, work, merged = map(str, places)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, merged]
        works = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if works:
            subprocess.run(["umount", merged], check=True)
        marker.write_text("overlay" if works else "vfs")
    return marker.read_text() == "overlay"
