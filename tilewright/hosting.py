"""Operators that run on the host: what a compiled program calls back for. In: an operation of the graph without a recipe.
Out: a function of the addresses of its operands and results, for a slot of host calls.

Only a model in the process that compiled it can do this; `save` refuses it by name.
"""
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.interpret import apply
from tilewright.graph.ir import Operation, Value
from tilewright.graph.plan import HostCall
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


class _Waiting(threading.local):
    """This thread's results between the two calls of an operation."""

    def __init__(self) -> None:
        self.results: dict[int, tuple[Array, ...]] = {}


_waiting = _Waiting()


def host_function(call: HostCall) -> Callable[[list[int]], None]:
    """What a slot of host calls does with its arguments."""
    op, values = call.op, [*call.operands, *call.results]

    def run(given: list[int]) -> None:
        at = len(values) + bool(call.decides)
        sizes = dict(zip(call.symbols, given[at:], strict=True))

        def size(d: Expr) -> int:
            n = as_int(simplify(substitute(d, {v: const(n) for v, n in sizes.items()})))
            assert n is not None
            return n
        places = [_array(v, where, tuple([size(d) for d in v.shape])) for v, where in zip(values, given, strict=False)]
        operands = iter(places[:len(call.operands)])
        if call.operands or not call.results or id(op) not in _waiting.results:
            results = apply(op, [None if v is None else next(operands) for v in op.inputs], size)
        else:
            results = _waiting.results.pop(id(op))
        if call.decides:
            _waiting.results[id(op)] = results
            found = {d: n for v, r in zip(op.outputs, results, strict=True) for d, n in zip(v.shape, r.shape, strict=True)}
            cell = (ctypes.c_int64 * len(call.decides)).from_address(given[at - 1])
            cell[:] = [found[s] for s in call.decides]
            return
        for place, result in zip(places[len(call.operands):], results, strict=True):
            if result.shape != place.shape:
                raise UserError("run-shape", f"{op.op}: a result is {list(result.shape)}, not {list(place.shape)}",
                                where=op.loc)
            place[...] = result
    return run


def _array(v: Value, address: int, shape: tuple[int, ...]) -> Array:
    """The memory of a value as an array."""
    kind = v.dtype.numpy()
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if not count:
        return np.empty(shape, kind)
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), kind).reshape(shape)
