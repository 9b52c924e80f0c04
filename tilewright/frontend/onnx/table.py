"""The table from ONNX operators to graph operators: `@onnx_op(name, since=version)` enters a small function.

The function gets a `Context` (inputs as graph values, attributes with ONNX's defaults, the builder) and returns the
value of each output. Where an operator changed its meaning, several functions stand under one name, each from the
version that introduced it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.core.errors import InternalError, UserError
from tilewright.frontend.onnx.structure import Item, Series, tensors_of
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.infer import constant_of, elements_of, is_small_int
from tilewright.graph.ir import Graph, Value
from tilewright.loop.ir import Expr, as_int

Array = np.ndarray[Any, Any]
Result = Item | Sequence[Item]
Function = Callable[["Context"], Result]

NO_STRINGS = frozenset({"Unique", "SequenceMap"})
"""Operators that ONNX allows on strings and that are not read there: numbers stand for strings, in no order."""

_TABLE: dict[tuple[str, str], list[tuple[int, Function]]] = {}


HOST: dict[str, str] = {}
"""ONNX operators that become operators of the graph without a compiled form, and which."""


def onnx_op(*names: str, since: int = 1, domain: str = "", host: str = "") -> Callable[[Function], Function]:
    """Enter a function for operators from version `since` of their operator set to the next entry's. `host`: the graph's
    operator that they become, if that runs on the host."""
    def enter(fn: Function) -> Function:
        for name in names:
            if host:
                HOST[name] = host
            entry(name, fn, since, domain)
        return fn
    return enter


def entry(name: str, fn: Function, since: int = 1, domain: str = "") -> None:
    versions = _TABLE.setdefault((domain, name), [])
    if any(v == since for v, _ in versions):
        raise InternalError(f"the ONNX operator {name} is entered twice for version {since}")
    versions.append((since, fn))
    versions.sort(key=lambda e: -e[0])


def find(domain: str, name: str, opset: int) -> Function | None:
    """The function for an operator as of `opset`."""
    for since, fn in _TABLE.get((domain, name), ()):
        if since <= opset:
            return fn
    return None


def names(domain: str = "") -> list[str]:
    """All operators that have a function, sorted."""
    return sorted(name for d, name in _TABLE if d == domain)


class NeedsValue(UserError):
    """An operand decides a shape (or another thing that must be known while compiling) and is not known: `value`."""

    def __init__(self, message: str, value: Value, where: str, hint: str = "") -> None:
        super().__init__("onnx-dynamic-value", message, where=where, hint=hint)
        self.value = value


@dataclass
class Context:
    """One node while it is read. `since` is the version of the operator that holds; `opset` that of the model's set;
    `named` finds what a name stands for where the node is."""
    op: str
    loc: str
    opset: int
    since: int
    inputs: list[Item]
    attributes: dict[str, Any]
    outputs: list[str]
    b: GraphBuilder
    region: Callable[[str, list[Value]], Graph]
    inline: Callable[..., list[Item]]
    tensor: Callable[[Any], Array]
    given: frozenset[str] = field(default_factory=frozenset)
    branches: Callable[..., tuple[list[Graph], list[list[Item]]]] = lambda *names: ([], [])
    strings: set[Value] = field(default_factory=set)
    declared: dict[str, tuple[int, ...]] = field(default_factory=dict)
    named: Callable[[str], Item] = lambda name: None

    # ---- operands ----------------------------------------------------------------------------------------------------
    def item(self, k: int) -> Item:
        """Input `k`: a tensor, a sequence, or None."""
        return self.inputs[k] if k < len(self.inputs) else None

    def series(self) -> Series:
        """The first input, which must be a sequence."""
        v = self.item(0)
        if not isinstance(v, Series):
            raise self.error("onnx-invalid-graph", f"the input 0 of {self.op} is no sequence")
        return v

    def opt(self, k: int) -> Value | None:
        v = self.item(k)
        if isinstance(v, Series):
            raise self.error("onnx-invalid-graph", f"the input {k} of {self.op} is a sequence, a tensor is needed")
        return v

    def is_text(self, item: Item) -> bool:
        """Whether an item is, or holds, strings (as their numbers)."""
        return any(v in self.strings for v in tensors_of(item))

    def text(self, v: Value) -> Value:
        """Mark a tensor as one of strings."""
        self.strings.add(v)
        return v

    def x(self, k: int = 0) -> Value:
        """Input `k`, which must be given."""
        v = self.opt(k)
        if v is None:
            raise self.error("onnx-invalid-graph", f"{self.op} needs its input {k}")
        return v

    def all(self) -> list[Value]:
        return [self.x(k) for k in range(len(self.inputs))]

    def wants(self, k: int) -> bool:
        """Whether output `k` is used by name."""
        return k < len(self.outputs) and bool(self.outputs[k])

    # ---- attributes --------------------------------------------------------------------------------------------------
    def a(self, name: str, default: Any = None) -> Any:
        """An attribute; ONNX's default, else `default`, where it is absent."""
        value = self.attributes.get(name)
        return default if value is None else value

    # ---- operands whose values must be known -------------------------------------------------------------------------
    def dims(self, k: int, least: int = 0) -> tuple[Expr, ...]:
        """The elements of integer input `k` as dimension expressions: of unknown ones, as symbols from `least` on that get
        their values at run time."""
        v = self.x(k)
        if not v.dtype.is_int:
            raise self.error("onnx-invalid-graph", f"the input {k} of {self.op} must be integers, it is {v.type}")
        found = elements_of(v)
        if found is not None:
            return found
        if v.data is not None:
            raise self.error("onnx-dynamic-value", f"the input {k} of {self.op} has too many elements: {v.type}")
        if is_small_int(v.type):
            return self.b.sizes(v, least)
        raise NeedsValue(f"the input {k} of {self.op} (%{v.name}) must be known while compiling, and it depends on data",
                         v, self.loc, "make it a constant, or set the symbolic sizes")

    def is_known(self, k: int) -> bool:
        """Whether the elements of input `k` are known while compiling."""
        return elements_of(self.x(k)) is not None

    def ints(self, k: int) -> tuple[int, ...]:
        """The elements of integer input `k` as numbers."""
        v = self.x(k)
        if elements_of(v) is None and v.data is None:
            raise NeedsValue(f"the input {k} of {self.op} (%{v.name}) must be known while compiling, and it depends on data",
                             v, self.loc, "make it a constant, or set the symbolic sizes")
        out = [as_int(d) for d in self.dims(k)]
        if any(d is None for d in out):
            raise self.error("onnx-dynamic-value", f"the input {k} of {self.op} (%{v.name}) must be known while compiling, "
                             f"and it is {list(self.dims(k))}", "set the model's symbolic sizes")
        return tuple([d for d in out if d is not None])

    def array(self, k: int) -> Array:
        """Input `k`, which must be a constant."""
        found = constant_of(self.x(k))
        if found is None:
            raise NeedsValue(f"the input {k} of {self.op} (%{self.x(k).name}) must be a constant", self.x(k), self.loc)
        return found

    def scalar(self, k: int) -> Any:
        """The only element of constant input `k` as a Python number."""
        a = self.array(k)
        if a.size != 1:
            raise self.error("onnx-invalid-graph", f"the input {k} of {self.op} must have one element, not {a.size}")
        return a.reshape(-1)[0].item()

    def ints_of(self, name: str, k: int) -> tuple[int, ...] | None:
        """Integers that older versions have as attribute `name` and newer ones as input `k`; None where absent."""
        if name in self.attributes:
            value = self.a(name)
            return None if value is None else tuple(value)
        return None if self.opt(k) is None else self.ints(k)

    # ---- making ------------------------------------------------------------------------------------------------------
    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.b.add(op, inputs, attrs, name=self._name(op))

    def add_all(self, op: str, *inputs: Value | None, regions: Sequence[Graph] = (), **attrs: Any) -> tuple[Value, ...]:
        return self.b.add_all(op, inputs, attrs, name=self._name(op), regions=regions)

    def _name(self, op: str) -> str:
        """Of a value inside the node; what the node returns gets its name in the model."""
        return f"{self.outputs[0]}.{op}" if self.outputs else op

    def const(self, value: Any, like: DType) -> Value:
        """A constant of the element type `like`."""
        return self.b.constant(np.asarray(value), self._name("const"), element=like)

    def reshape(self, v: Value, shape: Sequence[Any]) -> Value:
        """`v` in another shape; a constant stays one and shares its bytes."""
        sizes = [as_int(d) for d in shape] if v.data is not None else [None]
        if v.data is not None and all(d is not None for d in sizes):
            return self.b.constant(v.data.reshape([d for d in sizes if d is not None]), v.name)
        return self.b.reshape(v, shape)

    def cast(self, v: Value, to: DType) -> Value:
        return v if v.dtype is to else self.add("cast", v, to=to)

    def per_channel(self, v: Value, rank: int, axis: int = 1) -> Value:
        """A vector laid along `axis` of a tensor of `rank`."""
        return self.reshape(v, [v.shape[0] if k == axis else 1 for k in range(axis, rank)])

    # ---- errors ------------------------------------------------------------------------------------------------------
    def error(self, code: str, message: str, hint: str = "") -> UserError:
        return UserError(code, message, where=self.loc, hint=hint)

    def expect(self, ok: bool, what: str) -> None:
        """UserError `onnx-unsupported-variant` unless `ok`: the operator is known, this use of it is not."""
        if not ok:
            raise self.error("onnx-unsupported-variant", f"{self.op}: {what} is not supported")
