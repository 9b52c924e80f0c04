"""How a model's own inputs and outputs are made of tensors, where they are not all tensors of numbers: sequences, optional
values, strings. In: values by the model's names. Out: the tensors that the code takes; and back.

The structure is known while compiling: a sequence is the list of its elements, an optional value is there or not. Strings
travel as numbers (core/strings.py).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.core import strings
from tilewright.core.errors import UserError

Array = np.ndarray[Any, Any]
Tree = Any
"""int: the tensor of that number; list of trees: a sequence; None: an optional value that is not there."""


@dataclass(frozen=True)
class Signature:
    """Names and trees of the inputs and outputs; the numbers of those tensors that stand for strings."""
    inputs: tuple[tuple[str, Tree], ...]
    outputs: tuple[tuple[str, Tree], ...]
    string_inputs: frozenset[int] = frozenset()
    string_outputs: frozenset[int] = frozenset()

    @property
    def is_plain(self) -> bool:
        """Whether every input and output is one tensor of numbers, in order."""
        return not self.string_inputs and not self.string_outputs and all(
            tree == k for part in (self.inputs, self.outputs) for k, (_, tree) in enumerate(part))

    @property
    def structured(self) -> frozenset[str]:
        """Names of the inputs that are sequences or optional values."""
        return frozenset([name for name, tree in self.inputs if not isinstance(tree, int)])

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {"inputs": self.inputs, "outputs": self.outputs, "string_inputs": sorted(self.string_inputs),
                "string_outputs": sorted(self.string_outputs)}

    @staticmethod
    def of_facts(facts: Mapping[str, Any]) -> Signature:
        return Signature(tuple([(n, t) for n, t in facts["inputs"]]), tuple([(n, t) for n, t in facts["outputs"]]),
                         frozenset(facts["string_inputs"]), frozenset(facts["string_outputs"]))

    def flatten(self, values: Sequence[Any]) -> list[Any]:
        """The tensors of the inputs' values, which are in order. Raises UserError "input-structure"."""
        found: dict[int, Any] = {}
        for (name, tree), value in zip(self.inputs, values, strict=True):
            self._take(name, tree, value, found)
        return [found[k] for k in range(len(found))]

    def _take(self, name: str, tree: Tree, value: Any, found: dict[int, Any]) -> None:
        if isinstance(tree, int):
            if value is None or isinstance(value, list) and tree not in self.string_inputs:
                raise _misfit(name, "a tensor", value)
            found[tree] = strings.encode(value) if tree in self.string_inputs else value
        elif tree is None:
            if value is not None:
                raise _misfit(name, "nothing (None)", value)
        else:
            if not isinstance(value, list | tuple) or len(value) != len(tree):
                raise _misfit(name, f"a list of {len(tree)} elements", value)
            for k, (part, element) in enumerate(zip(tree, value, strict=True)):
                self._take(f"{name}[{k}]", part, element, found)

    def unflatten(self, tensors: Sequence[Array]) -> list[Any]:
        """The outputs' values."""
        return [self._give(tree, tensors) for _, tree in self.outputs]

    def named_inputs(self, values: Sequence[Any]) -> dict[str, Any]:
        """The inputs by name, of values for the tensors (strings as text)."""
        plain = Signature(self.inputs, self.inputs)
        return dict(zip([name for name, _ in self.inputs], plain.unflatten(values), strict=True))

    def _give(self, tree: Tree, tensors: Sequence[Array]) -> Any:
        if isinstance(tree, int):
            return strings.decode(tensors[tree]) if tree in self.string_outputs else tensors[tree]
        return None if tree is None else [self._give(t, tensors) for t in tree]


def _misfit(name: str, wanted: str, value: Any) -> UserError:
    got = "None" if value is None else f"a list of {len(value)}" if isinstance(value, list | tuple) else \
        f"an array {list(np.shape(value))}"
    return UserError("input-structure", f"the input {name!r} was compiled as {wanted}, got {got}", where=name,
                     hint="compile the model again for this structure: shapes={name: [shape of each element]}, or None")
