"""Codes of failures that are hard to bring about: a library that was not built, statuses of the runtime."""
from __future__ import annotations

import pytest

from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.module import _failure


def test_a_runtime_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.machinery, "EXTENSION_SUFFIXES", [".none"])
    native._library.cache_clear()
    with pytest.raises(UserError, match="runtime-not-built"):
        native._library()
    monkeypatch.undo()
    assert native._library() is not None


@pytest.mark.parametrize("status, code", [(1, "run-index"), (2, "run-memory"), (4, "run-value"), (99, "run-failed")])
def test_statuses_have_codes(status: int, code: str) -> None:
    assert _failure(native.runtime(), status).code == code
