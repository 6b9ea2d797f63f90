"""The site that `make docs` makes of the pages: nothing to warn of, no page left out, nothing of another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mkdocs_pages
from tests.documents.reading import ROOT

HOSTED = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))\b[^>]*(?:src|href)="?(https?:)?//[^>]*"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site_and_needs_no_other_host(site: Path) -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")} | set(mkdocs_pages.ELSEWHERE)
    for page in pages:
        html = (site / mkdocs_pages.path_in_site(page)).with_suffix(".html").read_text(encoding="utf-8")
        assert not HOSTED.search(html), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\s\"']*(https?:)?//", style.read_text(encoding="utf-8")), style


def test_links_out_of_the_documents_lead_to_what_is_shown(site: Path) -> None:
    html = (site / "operations.html").read_text(encoding="utf-8")
    assert 'href="source/deploy/prometheus/rules.yaml.html"' in html
    assert "MfalconDown" in (site / "source/deploy/prometheus/rules.yaml.html").read_text(encoding="utf-8")
    assert 'href="client.html#append-events"' in html
    assert "<code>dashboard.json</code>" in (site / "source/deploy/grafana.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("README.md", "docs/operations.md#metrics", "operations.md#metrics"),
        ("docs/operations.md", "../client/README.md#append-events", "client.md#append-events"),
        ("docs/results/quality.md", "../benchmarks.md", "../benchmarks.md"),
        ("docs/results/quality.md", "../../README.md", "../index.md"),
        ("docs/kubernetes.md", "../deploy/envoy/envoy.yaml", "source/deploy/envoy/envoy.yaml.md"),
        ("README.md", "docs/figures/latency.png", "figures/latency.png"),
        ("README.md", "https://arxiv.org/abs/2402.17152", "https://arxiv.org/abs/2402.17152"),
        ("README.md", "#redis", "#redis"),
        ("README.md", "docs/nowhere.md", "docs/nowhere.md"),
    ],
)
def test_links_are_moved(page: str, link: str, moved: str) -> None:
    assert mkdocs_pages.with_links_of_the_site(page, f"[x]({link})") == f"[x]({moved})"
