"""custom: an operator of the user's own, defined by a function of tensors in the compute language or the kernel language.

In: a `CustomOp`, which the user makes and hands to the compiler. Out: one operator of the graph whose shapes, meaning and
code all follow from that function: shapes from what it returns, NumPy meaning from the loop interpreter on its program.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.core.dtype import dtype
from tilewright.core.errors import UserError
from tilewright.graph.ir import Operation, TensorType, tensor_type
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.interpret import run
from tilewright.loop.ir import as_int
from tilewright.tensor.compute import Tensor, create_program, placeholder


@dataclass(frozen=True)
class CustomOp:
    """An operator "domain::Name" of a model: `build(*tensors, **attributes)` returns the Tensor (or a tuple of them) that it
    computes; a kernel of the kernel language serves as well. An optional operand that is left out arrives as None."""
    name: str
    build: Callable[..., Any]

    def __repr__(self) -> str:
        return f'custom("{self.name}")'

    @property
    def key(self) -> tuple[str, str]:
        """(domain, name)."""
        domain, _, name = self.name.rpartition("::")
        return domain, name

    def results(self, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """What it computes of some operands. Raises UserError "custom-op-invalid"."""
        found = self.build(*tensors, **attributes)
        out = tuple(found) if isinstance(found, tuple | list) else (found,)
        if not out or not all(isinstance(t, Tensor) for t in out):
            raise UserError("custom-op-invalid", f"{self.name} returns {found!r}, no tensor of the compute language")
        return out


def custom_op(name: str, build: Callable[..., Any]) -> CustomOp:
    """An operator of one's own for `compile(..., custom_ops=[...])`. Raises UserError "custom-op-invalid"."""
    made = CustomOp(name, build)
    if not all(part and part.isprintable() and part.strip() == part for part in made.key):
        raise UserError("custom-op-invalid", f"{name!r} names no operator",
                        hint='write "domain::Name", as the model has them')
    return made


def _placeholders(op: Operation) -> list[Tensor | None]:
    return [None if v is None else placeholder(v.shape, v.dtype, f"x{k}") for k, v in enumerate(op.inputs)]


def _infer(op: Operation) -> Sequence[TensorType]:
    given = _placeholders(op)
    results = op.attrs["definition"].results(given, dict(op.attrs["attributes"]))
    if any(t in given for t in results):
        raise UserError("custom-op-invalid", f"{op.attrs['definition'].name} returns one of its operands", hint="copy it")
    return [tensor_type(t.dtype, t.shape) for t in results]


def _numpy(attrs: dict[str, Any], *arrays: Array | None) -> tuple[Array, ...]:
    tensors = [None if a is None else placeholder(a.shape, dtype(a.dtype), f"x{k}") for k, a in enumerate(arrays)]
    results = attrs["definition"].results(tensors, dict(attrs["attributes"]))
    given = [t for t in tensors if t is not None]
    program = create_program("custom", given, results)
    out = [np.zeros([as_int(d) or 0 for d in t.shape], t.dtype.numpy()) for t in results]
    run(program, [*[np.ascontiguousarray(a) for a in arrays if a is not None], *out])
    return tuple(out)


def _compute(op: Operation, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    return op.attrs["definition"].results(tensors, dict(op.attrs["attributes"]))


RECORDS = (
    OpRecord("custom", "opaque", _infer, _numpy, _compute, doc="An operator of the user's own.", attrs={
        "definition": Attr("operator", doc="what it computes"),
        "attributes": Attr("pairs", (), doc="the node's attributes: (name, value) pairs")}),
)
