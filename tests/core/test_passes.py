"""Pipelines and their observers."""
from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest

from tilewright.core.errors import InternalError, UserError
from tilewright.core.passes import Dump, Pipeline, PrintIR, Timing, Verify, pass_name


def double(text: str) -> str:
    """Writes the text twice.

    More.
    """
    return text + "\n" + text


def keep(text: str) -> str:
    """Does nothing."""
    return text


def suffix(text: str, *, by: str) -> str:
    """Appends a line."""
    return text + "\n" + by


PIPELINE: Pipeline[str] = Pipeline("texts", [double, keep, functools.partial(suffix, by="z")])


def test_run_and_description() -> None:
    assert PIPELINE.run("a") == "a\na\nz"
    assert pass_name(PIPELINE.passes[2]) == "suffix"
    assert "double" in str(PIPELINE) and "Writes the text twice." in str(PIPELINE) and "More" not in str(PIPELINE)


def test_verify_blames_the_pass() -> None:
    def check(text: str) -> None:
        if "z" in text:
            raise InternalError("z is not allowed")
    with pytest.raises(InternalError, match=r"pass suffix \(texts, number 2\) broke the program: z is not allowed"):
        PIPELINE.run("a", [Verify(check)])
    with pytest.raises(InternalError, match="given to texts is not valid"):
        PIPELINE.run("z", [Verify(check)])


def test_print_shows_what_changed() -> None:
    out = io.StringIO()
    PIPELINE.run("a", [PrintIR(out)])
    assert "# after double (texts 0)\na\na\n" in out.getvalue()
    assert "keep" not in out.getvalue()


def test_timing_and_dump(tmp_path: Path) -> None:
    timing = Timing()
    PIPELINE.run("a", [timing, Dump(tmp_path)])
    assert set(timing.seconds) == {("texts", "double"), ("texts", "keep"), ("texts", "suffix")}
    assert all(s >= 0 for s in timing.seconds.values()) and timing.report().count("\n") == 2
    assert sorted(p.name for p in (tmp_path / "texts").iterdir()) == [
        "00.ir", "01_double.diff", "01_double.ir", "03_suffix.diff", "03_suffix.ir"]
    assert (tmp_path / "texts" / "03_suffix.ir").read_text() == "a\na\nz\n"
    assert "\n+z\n" in (tmp_path / "texts" / "03_suffix.diff").read_text()


def test_errors_name_the_pass_unless_they_are_the_users() -> None:
    def fails(text: str) -> str:
        raise KeyError(text)

    def refuses(text: str) -> str:
        raise UserError("bad-text", "no")
    with pytest.raises(InternalError, match=r"pass fails \(p, number 0\) failed: KeyError: 'a'"):
        Pipeline("p", [fails]).run("a")
    with pytest.raises(UserError, match="bad-text"):
        Pipeline("p", [refuses]).run("a")
