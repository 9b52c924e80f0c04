"""Runs in which a size is 1 that the code takes to be equal to another, because the model broadcasts the one with the other:
the model is compiled once more with such sizes set to 1 when the first run with them comes.

In: which sizes of the inputs are one (`Joined`), and a function that compiles the model for given shapes. Out: for a run
that does not fit, the model that takes its arrays.
"""
from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.assumed import Joined
from tilewright.graph.ir import Graph
from tilewright.graph.versions import version_shapes
from tilewright.loop.ir import Expr, Var, as_int


class BroadcastWarning(UserWarning):
    """A run had to compile the model once more, for sizes that are 1."""


class Broadcasts:
    """The models for sizes of 1 that were needed so far. Several threads may ask at once."""

    def __init__(self, joined: Joined, compile: Callable[[Mapping[str, Any]], Any]) -> None:
        self.joined, self.compile = joined, compile
        self.made: dict[frozenset[str], Any] = {}
        self.lock = threading.Lock()

    def ones(self, arrays: Sequence[Any]) -> frozenset[str]:
        """The symbols that are 1 in a run, and may be, where what they are broadcast with is not."""
        sizes: dict[Expr, dict[str, int]] = {}
        for v, a in zip(self.joined.declared, arrays, strict=True):
            for d, n in zip(v.shape, np.shape(a), strict=False):
                if isinstance(d, Var) and d.name in self.joined.stands:
                    sizes.setdefault(self.joined.stands[d.name], {})[d.name] = n
        return frozenset([name for one, found in sizes.items() if {as_int(one) or 1, *found.values()} != {1}
                          for name, n in found.items() if n == 1 and name in self.joined.broadcast])

    def model_for(self, arrays: Sequence[Any]) -> Any | None:
        """A model in which the sizes that are 1 in this run are 1; None where that changes nothing or cannot be."""
        ones = self.ones(arrays)
        if not ones:
            return None
        with self.lock:
            if ones not in self.made:
                sizes = dict.fromkeys(sorted(ones), 1)
                warnings.warn(f"this run broadcasts sizes of 1, for which the model is compiled once more: {sizes} in "
                              "`shapes` does so before", BroadcastWarning, stacklevel=5)
                try:
                    inputs = Graph("inputs", self.joined.declared, (), ())
                    self.made[ones] = self.compile(version_shapes(inputs, sizes, "shapes"))
                except UserError:  # they must be equal for another reason, too
                    self.made[ones] = None
            return self.made[ones]

    def close(self) -> None:
        for model in self.made.values():
            if model is not None:
                model.close()
