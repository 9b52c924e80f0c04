"""Types of a model's inputs: declared shapes joined with the sizes that the user sets."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.core.errors import UserError
from tilewright.frontend.onnx.checks import invalid
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.ir import TensorType
from tilewright.loop.ir import Expr, Var, const

Size = int | str


def input_types(infos: Sequence[Any], shapes: Mapping[str, Any]) -> dict[str, TensorType]:
    """Types by input name, in order. One symbol (Var) per name of a dimension across all inputs.

    `shapes` maps an input's name to its whole shape (numbers, and names for symbols) or a symbol's name to a number.
    Raises UserError `shape-unknown-name`, `shape-invalid`, `shape-mismatch`, `shape-open` (an input without a declared
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
    symbols = {d for s in declared.values() if s for d in s if isinstance(d, str)}
    bound = _bindings(declared, symbols, shapes)
    made: dict[str, Var] = {}

    def size(d: Size) -> Expr:
        value = bound.get(d, d) if isinstance(d, str) else d
        return const(value) if isinstance(value, int) else made.setdefault(value, Var(value))
    out = {}
    for name, shape in declared.items():
        if shape is None:
            shape = list(shapes[name])
        out[name] = TensorType(elements[name], tuple([size(d) for d in shape]))
    return out


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


def _bindings(declared: Mapping[str, list[Size] | None], symbols: set[str],
              shapes: Mapping[str, Any]) -> dict[str, Size]:
    """What the user says about each symbol: a number, or another name."""
    bound: dict[str, Size] = {}

    def bind(symbol: str, value: Size, where: str) -> None:
        if bound.setdefault(symbol, value) != value:
            raise UserError("shape-mismatch", f"{symbol!r} is set to {bound[symbol]} and to {value}", where=where)
    for name, value in shapes.items():
        where = f"shapes[{name!r}]"
        if name in declared and not isinstance(value, int):
            shape = [_size(d, where) for d in _as_sequence(value, where)]
            known = declared[name]
            if known is None:
                continue
            if len(known) != len(shape):
                raise UserError("shape-mismatch", f"the input {name!r} has rank {len(known)}, {len(shape)} sizes are "
                                "given", where=where)
            for old, new in zip(known, shape, strict=True):
                if isinstance(old, str):
                    bind(old, new, where)
                elif isinstance(new, int) and new != old:
                    raise UserError("shape-mismatch", f"the model fixes the shape {known} of {name!r}, {shape} is "
                                    "given", where=where)
        elif name in symbols:
            size = _size(value, where)
            bind(name, size, where)
        else:
            known_names = sorted({*declared, *symbols})
            raise UserError("shape-unknown-name", f"the model has no input and no dimension {name!r}", where=where,
                            hint="known: " + ", ".join(known_names[:40]))
    for name, known in declared.items():
        if known is None and name not in shapes:
            raise UserError("shape-open", f"the model does not say the rank of the input {name!r}",
                            hint=f'give its shape: shapes={{"{name}": (1, 3, 224, 224)}}')
    return bound


def _as_sequence(value: Any, where: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError("shape-invalid", f"an input's shape is a sequence of sizes, not {value!r}", where=where)
    return list(value)


def _size(value: Any, where: str) -> Size:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool) or not isinstance(plain, int | str) or plain == "" \
            or isinstance(plain, int) and not 0 <= plain < 2**31:
        raise UserError("shape-invalid", f"a size is a number from 0 or a name, not {value!r}", where=where)
    return plain
