"""What the settings make of a language model, and what a key may be."""

from pathlib import Path

import pytest

from mfalcon.errors import ConfigError
from mfalcon.rerank.language_model import LanguageModelOptions
from server.config import load_config
from server.options import language_model_options

FLAGS = {"checkpoint": "c", "llm_url": "https://h/v1", "llm_model": "gpt"}


def test_without_a_url_there_is_none() -> None:
    assert language_model_options(load_config(None, {"checkpoint": "c"})) is None


def test_settings_reach_their_place_and_the_key_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    flags = {"llm_key_file": tmp_path / "key", "llm_timeout_ms": 700, "llm_concurrency": 3}
    options = language_model_options(load_config(None, FLAGS | flags))
    assert options == LanguageModelOptions("https://h/v1", "gpt", "s3cret", 0.7, 3)
    assert "s3cret" not in repr(options)
    assert language_model_options(load_config(None, FLAGS)) == LanguageModelOptions("https://h/v1", "gpt")


@pytest.mark.parametrize("content", [b"", b" \n", "kéy".encode(), b"two\nlines", b"\xff", b"x" * 4_097, b"a\x00b"])
def test_a_key_that_no_header_holds_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match=r"llm_key_file: (got|cannot read)") as refused:
        language_model_options(load_config(None, FLAGS | {"llm_key_file": tmp_path / "key"}))
    assert "two" not in str(refused.value)


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm_key_file: cannot read .*: No such file"):
        language_model_options(load_config(None, FLAGS | {"llm_key_file": tmp_path / "key"}))
