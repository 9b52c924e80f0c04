"""docs/compute_language.md: its examples run, pasted one after another."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "compute_language.md"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for text in examples:
        exec(compile(text, PAGE.name, "exec"), names)
    assert len(examples) >= 4 and names["even"].op.calling.function.symbol == "smooth"
    out = names["np"].zeros(16, "float32")
    names["in_python"](*[4 * names["np"].ones(16, "float32"), out, 16, 0.5])
    assert out[1] + 1 == 7  # the function that stands in does the same
