"""What deploy/kubernetes holds, as Python values."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "redis-cluster")
Manifest = dict[str, Any]


def read(*paths: str) -> list[Manifest]:
    """The manifests of committed files."""
    return [manifest for path in paths for manifest in yaml.safe_load_all((ROOT / path).read_text())]


def only(manifests: list[Manifest], kind: str, name: str = "mfalcon") -> Manifest:
    """The one of a kind and a name."""
    (found,) = (one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def settings(kustomization: str) -> dict[str, str]:
    """The literals of a kustomization's ConfigMaps."""
    (read_it,) = read(kustomization)
    literals = (literal for made in read_it.get("configMapGenerator", ()) for literal in made.get("literals", ()))
    return {name: value for name, _, value in (literal.partition("=") for literal in literals)}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and the specification of everything that runs."""
    for one in manifests:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif one["kind"] in {"Deployment", "StatefulSet"}:
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def kubectl() -> str | None:
    """The program that renders overlays, where it is installed (Debian's package kubernetes-client)."""
    return shutil.which("kubectl")


def rendered(program: str, overlay: str) -> list[Manifest]:
    """What would be applied. Raises CalledProcessError."""
    done = subprocess.run(
        [program, "kustomize", str(ROOT / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return list(yaml.safe_load_all(done.stdout))


def main() -> None:
    """Write what each overlay renders to build/kubernetes, for tools that read files."""
    program = kubectl()
    if program is None:
        raise SystemExit("kubectl is not installed: Debian's package is kubernetes-client")
    out = Path("build/kubernetes")
    out.mkdir(parents=True, exist_ok=True)
    for overlay in OVERLAYS:
        (out / f"{overlay}.yaml").write_text(yaml.safe_dump_all(rendered(program, overlay)))


if __name__ == "__main__":
    main()
