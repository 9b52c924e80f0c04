"""Types of a model's inputs: declared shapes joined with the sizes that the user sets."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tilewright.core.errors import UserError
from tilewright.frontend.onnx.checks import invalid
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.ir import TensorType
from tilewright.loop.ir import Expr, Span, Var, const

Size = int | str
FREE = Span(least=0)
"""Of a dimension of which nothing is said."""

_SPAN = re.compile(r"(\d+)\.\.(\d*)(?:%(\d+))?(?:~(\d+))?")


def input_types(infos: Sequence[Any], shapes: Mapping[str, Any],
                joined: Mapping[str, Expr] = MappingProxyType({})) -> dict[str, TensorType]:
    """Types by input name, in order. One symbol (Var) per name of a dimension across all inputs; `joined` says what stands
    for those that are one, by name.

    `shapes` maps an input's name to its whole shape, or a symbol's name to a size. A size is a number, a name, a range
    such as "1..512", "1.." or "8..512%8" (multiples of 8), each followed by "~128" where 128 is usual; a name may be
    given with its range: "batch:1..64". What nothing is said of is a symbol from 1.
    Raises UserError `shape-unknown-name`, `shape-invalid`, `shape-mismatch`, `shape-fixed` (another size than the file's
    number), `shape-open` (an input without a declared
    rank), `onnx-unsupported-type`, `onnx-invalid-graph`.
    """
    declared: dict[str, list[Size] | None] = {}
    elements = {}
    for v in infos:
        if not v.name or v.name in declared:
            raise invalid(f"two inputs are named {v.name!r}" if v.name else "an input has no name")
        where = f"input {v.name!r}"
        if v.type.WhichOneof("value") != "tensor_type":
            raise UserError("onnx-unsupported-type", f"only tensors are supported as inputs, not "
                            f"{(v.type.WhichOneof('value') or 'no type').removesuffix('_type')}", where=where)
        elements[v.name] = element_type(v.type.tensor_type.elem_type, where)
        declared[v.name] = _declared(v)
    given = _Given(declared)
    for name, value in shapes.items():
        given.take(name, value)
    def size(d: Size) -> Expr:
        e = given.size(d)
        return joined.get(e.name, e) if isinstance(e, Var) else e
    return {name: TensorType(elements[name], tuple([size(d) for d in given.shape(name)])) for name in declared}


def _declared(info: Any) -> list[Size] | None:
    """Sizes and names of symbols as the file declares them; None for an unknown rank."""
    t = info.type.tensor_type
    if not t.HasField("shape"):
        return None
    out: list[Size] = []
    for k, d in enumerate(t.shape.dim):
        if d.WhichOneof("value") == "dim_value" and d.dim_value >= 0:
            out.append(d.dim_value)
        else:
            out.append(d.dim_param or f"{info.name}_dim{k}")
    return out


class _Given:
    """What the user says about the sizes: by symbol of the file a number or another name, and by name its span."""

    def __init__(self, declared: Mapping[str, list[Size] | None]) -> None:
        self.declared = declared
        self.symbols = {d for s in declared.values() if s for d in s if isinstance(d, str)}
        self.bound: dict[str, Size] = {}
        self.spans: dict[str, Span] = {}
        self.ranked: dict[str, list[Size]] = {}
        self.made: dict[str, Var] = {}

    def take(self, name: str, value: Any) -> None:
        where = f"shapes[{name!r}]"
        if name in self.declared and not (isinstance(value, int) or isinstance(value, str) and name in self.symbols):
            given, known = _as_sequence(value, where), self.declared[name]
            if known is None:
                self.ranked[name] = [self.parsed(d, f"{name}_dim{k}", where) for k, d in enumerate(given)]
                return
            if len(known) != len(given):
                raise UserError("shape-mismatch", f"the input {name!r} has rank {len(known)}, {len(given)} sizes are "
                                "given", where=where, hint=f"the model declares {_show(known)}")
            for k, (old, d) in enumerate(zip(known, given, strict=True)):
                new = self.parsed(d, old if isinstance(old, str) else f"{name}_dim{k}", where)
                if isinstance(old, str):
                    self.bind(old, new, where)
                elif new != old:
                    raise UserError("shape-fixed", f"the model fixes dimension {k} of the input {name!r} to {old}, {d} is "
                                    "asked for", where=where, hint=f"give {old} there, or export the model with this "
                                    "dimension open (in torch.onnx.export: dynamic_shapes or dynamic_axes)")
        elif name in self.symbols:
            self.bind(name, self.parsed(value, name, where), where)
        elif name in self.declared:
            _as_sequence(value, where)
        else:
            raise UserError("shape-unknown-name", f"the model has no input and no dimension {name!r}", where=where,
                            hint="known: " + ", ".join(sorted({*self.declared, *self.symbols})[:40]))

    def bind(self, symbol: str, value: Size, where: str) -> None:
        if value != symbol and self.bound.setdefault(symbol, value) != value:
            raise UserError("shape-mismatch", f"{symbol!r} is set to {self.bound[symbol]} and to {value}", where=where)

    def parsed(self, value: Any, name: str, where: str) -> Size:
        """A number or a name; a range is that of `name`, and entered."""
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, int) and not isinstance(plain, bool) and 0 <= plain < 2**31:
            return plain
        if isinstance(plain, str) and plain:
            before, colon, text = plain.rpartition(":")
            name = before if colon else name
            if colon or ".." in text:
                span = _span(text, where)
                if name and self.spans.setdefault(name, span) == span:
                    return name
                raise UserError("shape-mismatch", f"{name!r} is given the ranges {self.spans[name]} and {span}", where=where)
            return plain
        raise UserError("shape-invalid", "a size is a number from 0, a name, a range such as \"1..512\", or both "
                        f"(\"batch:1..64\"), not {value!r}", where=where)

    def shape(self, name: str) -> list[Size]:
        known = self.declared[name]
        if known is None and name not in self.ranked:
            raise UserError("shape-open", f"the model does not say the rank of the input {name!r}",
                            hint=f'give its shape: shapes={{"{name}": (1, 3, 224, 224)}}')
        return self.ranked[name] if known is None else known

    def size(self, d: Size) -> Expr:
        """The number or the one symbol of a size. A file's symbol that was given another name has that name's range, or
        its own."""
        value = self.bound.get(d, d) if isinstance(d, str) else d
        if isinstance(value, int):
            span = self.spans.get(d) if isinstance(d, str) else None
            if span is not None and value not in span:
                raise UserError("shape-mismatch", f"{d!r} is set to {value} and to the range {span}", where="shapes")
            return const(value)
        if value not in self.made:
            span = self.spans.get(value) or (self.spans.get(d) if isinstance(d, str) else None) or FREE
            self.made[value] = Var(value, span=span)
        return self.made[value]


def _span(text: str, where: str) -> Span:
    """"1..512", "1..", "8..512%8", "1..512~128". Multiples move the ends inwards."""
    found = _SPAN.fullmatch(text.replace(" ", ""))
    if found is not None:
        least, most, multiple, hint = (int(g) if g else None for g in found.groups())
        assert least is not None
        m = 1 if multiple is None else multiple
        if m > 0:
            span = Span(-(-least // m) * m, None if most is None else most // m * m, m)
            fits = span.least < 2**31 and (span.most is None or span.least <= span.most < 2**31)
            if fits and (hint is None or hint in span):
                return replace(span, hint=hint)
    raise UserError("shape-invalid", f"{text!r} is no range of sizes", where=where,
                    hint='"1..512", "1..", "8..512%8" for multiples of 8, "1..512~128" where 128 is usual')


def _show(shape: Sequence[Size]) -> str:
    return f"[{', '.join([str(d) for d in shape])}]"


def _as_sequence(value: Any, where: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError("shape-invalid", f"an input's shape is a sequence of sizes, not {value!r}", where=where)
    return list(value)
