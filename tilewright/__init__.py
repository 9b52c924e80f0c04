"""Tilewright: a deep-learning compiler. `tilewright.compile(model)` makes native code, `tilewright.load(path)` loads it;
`tilewright.te` has the language of single operators, of which the names most used are here, too."""
from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {"compile": "tilewright.driver", "load": "tilewright.driver", "build": "tilewright.function",
          "Model": "tilewright.model",
          "custom_op": "tilewright.graph.ops.custom", "kernel": "tilewright.tensor.script",
          "UserError": "tilewright.core.errors", "InternalError": "tilewright.core.errors",
          **dict.fromkeys(("placeholder", "compute", "reduce_axis", "create_program"), "tilewright.tensor.compute"),
          "create_schedule": "tilewright.tensor.stages", "thread_axis": "tilewright.tensor.stage",
          "Schedule": "tilewright.tensor.schedule.schedule", "schedule_html": "tilewright.tools.html"}
_MODULES = ("te",)

__all__ = ["InternalError", "Model", "Schedule", "UserError", "build", "compile", "compute", "create_program",
           "create_schedule", "custom_op", "kernel", "load", "placeholder", "reduce_axis", "schedule_html", "te",
           "thread_axis"]


def __getattr__(name: str) -> Any:
    """Load the compiler when it is first used: `import tilewright` alone is quick."""
    if name in _MODULES:
        return importlib.import_module(f"tilewright.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
