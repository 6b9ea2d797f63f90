"""What `make docs` adds to docs/: the pages that lie elsewhere in the repository, the files that a page links to, and
the language of a block, so that it is coloured.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
ELSEWHERE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "client/README.md": "client.md",
}
"""Pages outside docs/, and where they are in the site."""
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
LANGUAGES = {
    ".md": "markdown",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".proto": "protobuf",
    ".py": "python",
    ".conf": "nginx",
}


def path_in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return ELSEWHERE.get(path, f"source/{path}.md")


def path_in_repository(path: str) -> str:
    """Where a page of the site is in the repository."""
    return next((known for known, in_site in ELSEWHERE.items() if in_site == path), f"docs/{path}")


def linked(page: str, link: str) -> str | None:
    """The file or folder of the repository that a link of a page leads to; None for what is no such link."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(page), parts.path))
    return path if (ROOT / path).exists() else None


def with_links_of_the_site(page: str, text: str) -> str:
    """The text of a page of the repository, its links as they must be where the page is in the site."""
    folder = os.path.dirname(path_in_site(page))

    def moved(match: re.Match[str]) -> str:
        target = linked(page, match[0])
        if target is None:
            return match[0]
        fragment = urlsplit(match[0]).fragment
        return os.path.relpath(path_in_site(target), folder or ".") + (f"#{fragment}" if fragment else "")

    return LINK.sub(moved, text)


def shown(path: str) -> str:
    """A page for a file, or for the names in a folder."""
    if (ROOT / path).is_dir():
        names = sorted(
            found.relative_to(ROOT / path).as_posix() for found in (ROOT / path).rglob("*") if found.is_file()
        )
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n``````{language}\n{(ROOT / path).read_text(encoding='utf-8').rstrip()}\n``````\n"


def pages_elsewhere() -> Iterator[tuple[str, str]]:
    """The path in the site and the text of each page that is not in docs/."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in ELSEWHERE}
    for path, text in texts.items():
        yield path_in_site(path), text
    pages = texts | {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")
    }
    targets = {linked(page, link) for page, text in pages.items() for link in LINK.findall(text)}
    for target in sorted(filter(None, targets)):
        if not target.startswith("docs/") and target not in ELSEWHERE:
            yield path_in_site(target), shown(target)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs once it has read docs/."""
    for path, text in pages_elsewhere():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by mkdocs with the text of each page."""
    path = page.file.src_uri
    return markdown if path.startswith("source/") else with_links_of_the_site(path_in_repository(path), markdown)
