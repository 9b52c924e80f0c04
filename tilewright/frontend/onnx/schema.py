"""What ONNX says about its operators: versions, attributes with types and defaults, operands, definitions."""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import UserError

MISSING = object()
INFINITE = 2**31 - 1

FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS, TENSORS, GRAPHS = range(1, 11)
TYPE = 13
"""AttributeProto.AttributeType."""
_FIELDS = {FLOAT: "f", INT: "i", STRING: "s", TENSOR: "t", GRAPH: "g", FLOATS: "floats", INTS: "ints",
           STRINGS: "strings", TENSORS: "tensors", GRAPHS: "graphs", TYPE: "tp"}
_NAMES = {FLOAT: "a float", INT: "an int", STRING: "a string", TENSOR: "a tensor", GRAPH: "a graph", FLOATS: "floats",
          INTS: "ints", STRINGS: "strings", TENSORS: "tensors", GRAPHS: "graphs", TYPE: "a type"}


@dataclass(frozen=True)
class AttributeSpec:
    """Type (AttributeProto.AttributeType), whether it must be given, and the default (None if there is none)."""
    type: int
    required: bool
    default: Any


@dataclass(frozen=True)
class Schema:
    """An operator at one version. `raw` is onnx.defs.OpSchema, for function bodies; None where onnx does not know it."""
    name: str
    since: int
    deprecated: bool
    attributes: dict[str, AttributeSpec]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    raw: Any


_OWN: dict[tuple[str, str], Schema] = {}
"""Operators that the onnx package does not know, of other domains or experimental ones of its own."""


def declare(domain: str, name: str, inputs: tuple[int, int], outputs: tuple[int, int], attributes: dict[str, Any]) -> None:
    """Enter an operator that the onnx package does not know. An attribute is given by its default, or by the type of its
    values (int, float, str; tuple for several ints, list for several floats) where it has none."""
    kinds: dict[Any, int] = {int: INT, float: FLOAT, str: STRING, tuple: INTS, list: FLOATS}
    specs = {k: AttributeSpec(kinds[v], False, None) if isinstance(v, type) else AttributeSpec(kinds[type(v)], False, v)
             for k, v in attributes.items()}
    _OWN[domain, name] = Schema(name, 1, False, specs, inputs, outputs, None)


def newest_opset() -> int:
    """The newest version of the default operator set that the installed onnx knows."""
    from onnx import defs
    return int(defs.onnx_opset_version())


@functools.lru_cache(maxsize=2048)
def schema_of(domain: str, name: str, opset: int) -> Schema | None:
    """The operator as of `opset`; None if there is none."""
    from onnx import defs
    try:
        s = defs.get_schema(name, opset, domain)
    except defs.SchemaError:
        return _OWN.get((domain, name))
    attributes = {}
    for key, a in s.attributes.items():
        default: Any = a.default_value
        value = attribute_value(default) if default is not None and default.type else None
        kind: Any = a.type
        attributes[key] = AttributeSpec(int(kind.value), a.required, value)
    return Schema(name, s.since_version, s.deprecated, attributes, (s.min_input, s.max_input),
                  (s.min_output, s.max_output), s)


@dataclass(frozen=True)
class Formal:
    """A parameter of an operator: its type, or the variable that stands for one, and the types that are allowed."""
    type_str: str
    types: frozenset[str]


def formals(schema: Schema, which: str, count: int) -> list[Formal]:
    """The parameters behind the first `count` "inputs" or "outputs"; the last of the operator's may be repeated."""
    known = _formals(schema.raw, which) if schema.raw is not None else ()
    return [known[min(k, len(known) - 1)] for k in range(count)] if known else [Formal("", frozenset())] * count


@functools.lru_cache(maxsize=4096)
def _formals(raw: Any, which: str) -> tuple[Formal, ...]:
    return tuple([Formal(p.type_str, frozenset(p.types)) for p in getattr(raw, which)])


def attribute_value(a: Any) -> Any:
    """The value of an AttributeProto: numbers, str, tuples of them; protos for tensors and graphs."""
    kind = attribute_kind(a)
    value = getattr(a, _FIELDS[kind])
    if kind == STRING:
        return value.decode("utf-8", "replace")
    if kind == STRINGS:
        return tuple([v.decode("utf-8", "replace") for v in value])
    return tuple(value) if kind in (FLOATS, INTS, TENSORS, GRAPHS) else value


def attribute_kind(a: Any) -> int:
    """The declared type; where an old file declares none, the type of the field that is set."""
    if a.type in _FIELDS:
        return int(a.type)
    for kind, name in _FIELDS.items():
        single = kind <= GRAPH or kind == TYPE
        if single and a.HasField(name) or not single and len(getattr(a, name)):
            return kind
    raise UserError("onnx-invalid-graph", f"the attribute {a.name!r} has the unknown type {a.type}")


def kind_name(kind: int) -> str:
    return _NAMES.get(kind, f"type {kind}")
