"""Tilewright: a deep-learning compiler. `tilewright.compile(model)` makes native code, `tilewright.load(path)` loads it."""
from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {"compile": "tilewright.driver", "load": "tilewright.driver", "build": "tilewright.function",
          "Model": "tilewright.model",
          "custom_op": "tilewright.graph.ops.custom", "kernel": "tilewright.tensor.script",
          "UserError": "tilewright.core.errors", "InternalError": "tilewright.core.errors"}

__all__ = ["InternalError", "Model", "UserError", "build", "compile", "custom_op", "kernel", "load"]


def __getattr__(name: str) -> Any:
    """Load the compiler when it is first used: `import tilewright` alone is quick."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
