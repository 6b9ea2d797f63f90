"""A token that was accepted is found by its header afterwards: no longer than it is good, and none but that header."""

import os
import time
from pathlib import Path

import pytest

from mfalcon.errors import Unauthenticated
from server.access.access import Access
from tests.server.access.credentials import access_of, bearer, in_days, table, token, written

WEB = token("web")


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """It has accepted the token of `web`, which is good for a day."""
    access = access_of(written(tmp_path / "callers.toml", table("web", ["rank"], [(WEB, in_days(1))])))
    assert access.caller(bearer(WEB)).name == access.caller(bearer(WEB)).name == "web"
    return access


def test_it_expires(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 86_500
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthenticated, match="the token of caller web has expired"):
        access.caller(bearer(WEB))


def test_a_changed_file_takes_it_back(access: Access, tmp_path: Path) -> None:
    new = written(tmp_path / "new.toml", table("web", ["rank"], [(token("next"), None)]))
    os.replace(new, tmp_path / "callers.toml")
    access.look()
    with pytest.raises(Unauthenticated, match="the token is not valid"):
        access.caller(bearer(WEB))
    assert access.caller(bearer(token("next"))).name == "web"


class SameHash(str):
    """A header that Python's hash of texts takes for that of `web`."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(bearer(WEB))


def test_another_header_of_the_same_hash_is_another(access: Access) -> None:
    for other in (bearer(token("nobody")), bearer("\xe4"), ""):
        with pytest.raises(Unauthenticated):
            access.caller(SameHash(other))


def test_it_may_be_spelled_otherwise(access: Access) -> None:
    for scheme in ("bearer ", "BEARER  ", "Bearer" + 9 * " "):
        assert access.caller(scheme + WEB).name == access.caller(scheme + WEB).name == "web"
