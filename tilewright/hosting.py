"""Operators that run on the host: what a compiled program calls back for. In: an operation of the graph without a recipe.
Out: a function of the addresses of its operands and results, for a slot of host calls.

Only a model in the process that compiled it can do this; `save` refuses it by name.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.interpret import apply
from tilewright.graph.ir import Operation, Value
from tilewright.graph.plan import host_operands
from tilewright.graph.registry import record_of
from tilewright.loop.ir import Expr, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.runtime.memory import Array


class HostWarning(UserWarning):
    """A compiled model calls back into Python for some operators."""


@dataclass(frozen=True)
class HostNode:
    """A node that runs on the host: its place in the model, its graph operator, and why it has no compiled form."""
    where: str
    op: str
    reason: str


def host_node(op: Operation) -> HostNode:
    return HostNode(op.loc or op.outputs[0].name, op.op, record_of(op).host or "it has no recipe")


def refusal(nodes: Sequence[HostNode]) -> UserError:
    """The error for fallback="error": all nodes at once."""
    lines = "".join([f"\n  {n.where} ({n.op}): {n.reason}" for n in nodes])
    return UserError("fallback-host", f"{len(nodes)} operators run on the host:{lines}",
                     hint='fallback="host" lets the compiled code call back into Python for them')


def host_function(op: Operation) -> Callable[[list[int]], None]:
    """The operation, called with what `host_operands` says: addresses of operands and results, values of symbols."""
    values, symbols = host_operands(op)
    count = sum(1 for v in op.inputs if v is not None)

    def call(given: list[int]) -> None:
        sizes = dict(zip(symbols, given[len(values):], strict=True))

        def size(d: Expr) -> int:
            n = as_int(simplify(substitute(d, {v: const(n) for v, n in sizes.items()})))
            assert n is not None
            return n
        shapes = [tuple([size(d) for d in v.shape]) for v in values]
        places = [_array(v, at, shape) for v, at, shape in zip(values, given, shapes, strict=False)]
        operands = iter(places[:count])
        results = apply(op, [None if v is None else next(operands) for v in op.inputs], size)
        for place, result in zip(places[count:], results, strict=True):
            if result.shape != place.shape:
                raise UserError("run-shape", f"{op.op}: a result is {list(result.shape)}, not {list(place.shape)}",
                                where=op.loc)
            place[...] = result
    return call


def _array(v: Value, address: int, shape: tuple[int, ...]) -> Array:
    """The memory of a value as an array."""
    kind = v.dtype.numpy()
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if not count:
        return np.empty(shape, kind)
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), kind).reshape(shape)
