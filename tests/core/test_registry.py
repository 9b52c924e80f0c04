"""Registries: duplicates, misses with a suggestion, sorted iteration."""
from __future__ import annotations

import pytest

from tilewright.core.errors import InternalError, UserError
from tilewright.core.registry import Registry


def test_registry() -> None:
    ops: Registry[int] = Registry("operator")
    assert ops.register("relu", 1) == 1
    ops.register("conv", 2)
    assert ops.get("relu") == 1 and list(ops) == ["conv", "relu"] and "conv" in ops and len(ops) == 2
    assert list(ops.items()) == [("conv", 2), ("relu", 1)]
    with pytest.raises(InternalError, match="registered twice"):
        ops.register("relu", 3)
    with pytest.raises(UserError, match=r"\[operator-unknown\].*\n.*did you mean 'relu'"):
        ops.get("rel")
    with pytest.raises(UserError, match="known: conv, relu"):
        ops.get("xyzzy")
