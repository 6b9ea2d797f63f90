"""Write what is made of the catalog: `python -m mfalcon.metrics.publish`, in the root of the repository."""

from collections.abc import Mapping
from pathlib import Path

from mfalcon.metrics import dashboard, reference_page, rules_file

ROOT = Path(__file__).parents[2]


def files() -> Mapping[str, str]:
    """What each file should hold, by its path from the root of the repository."""
    return {
        "docs/metrics.md": reference_page.page(),
        "deploy/grafana/dashboard.json": dashboard.dashboard(),
        "deploy/prometheus/rules.yaml": rules_file.rules(),
        "deploy/kubernetes/components/monitoring/rules.yaml": rules_file.operator_rules(),
    }


def main() -> None:
    """Write them all."""
    for path, text in files().items():
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
