"""docs/errors.md: every code of a UserError is there, and every example gives the error that stands below it."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tilewright
from tests.golden import UPDATE, fits
from tilewright.runtime.module import _CODES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
RAISERS = {"UserError": 0, "error": 0, "expect": 1}  # callee → position of the code among its arguments
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


def sections() -> dict[str, str]:
    """Code → the text of its section."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def beginnings(code: str) -> str:
    """The Python blocks that the examples of a code's part continue from."""
    page = PAGE.read_text(encoding="utf-8")
    before = re.sub(r"^## .+?(?=^#+ |\Z)", "", page[:page.index(f"\n## {code}\n")], flags=re.MULTILINE | re.DOTALL)
    first, *parts = re.split(r"^# ", before, flags=re.MULTILINE)[1:]
    return "\n".join(m[1] for text in (first, *parts[-1:]) for m in EXAMPLE.finditer(text))


def codes_in(path: Path) -> Iterator[str]:
    """Literal codes that a file gives to UserError, or to a helper that raises it."""
    for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(n, ast.Call):
            name = n.func.id if isinstance(n.func, ast.Name) else n.func.attr if isinstance(n.func, ast.Attribute) else ""
            at = RAISERS.get(name, 0 if name == "__init__" else None)
            if at is not None and len(n.args) > at:
                code = n.args[at]
                if isinstance(code, ast.Constant) and isinstance(code.value, str) and CODE.fullmatch(code.value):
                    yield code.value
            if name == "Registry" and n.args and isinstance(n.args[0], ast.Constant):
                yield str(n.args[0].value).replace(" ", "-") + "-unknown"


def all_codes() -> set[str]:
    found = {code for path in (ROOT / "tilewright").rglob("*.py") for code in codes_in(path)}
    return found | set(_CODES.values()) | {"run-failed"}


def test_the_page_has_every_code_and_no_other() -> None:
    assert set(sections()) == all_codes()


def test_the_search_finds_codes() -> None:
    assert {"onnx-missing-file", "shape-mismatch", "schedule-illegal", "graph-operator-unknown"} <= all_codes()


def test_a_code_without_an_example_is_raised_by_another_test() -> None:
    without = [code for code, text in sections().items() if not EXAMPLE.search(text)]
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    assert [c for c in without if c not in tests] == []


@pytest.mark.parametrize("code", [code for code, text in sections().items() if EXAMPLE.search(text)])
def test_example(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLE.search(sections()[code])
    assert example is not None
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(beginnings(code), "docs/errors.md", "exec"), scope)
    if code == "verify-failed":
        monkeypatch.setattr("tilewright.model.VERIFY_TOLERANCE", tilewright.model.VERIFY_TOLERANCE)  # put back afterwards
    with pytest.raises(tilewright.UserError) as raised:
        exec(compile(example[1], "docs/errors.md", "exec"), scope)
    assert raised.value.code == code
    if UPDATE and not fits(example[2], str(raised.value)):
        page = PAGE.read_text(encoding="utf-8")
        old = f"```python\n{example[1]}```\n```text\n{example[2]}```"
        assert page.count(old) == 1
        PAGE.write_text(page.replace(old, f"```python\n{example[1]}```\n```text\n{raised.value}\n```"), encoding="utf-8")
    else:
        assert fits(example[2], str(raised.value)), str(raised.value)
