"""Sequences and optional values of ONNX: taken apart into tensors while a model is read, so that the graph has none.

In: the model's inputs, and what the user says about their structure. Out: inputs that are tensors, and the trees that tell
how they make up the model's (`core/signature.py`). An optional value that is there is the value itself.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.signature import Tree
from tilewright.graph.ir import Value

STRING = 8
"""TensorProto.DataType of strings …"""
INT64 = 7
"""… and of the numbers that stand for them."""


@dataclass(frozen=True, eq=False)
class Series:
    """A sequence whose length is known: its elements."""
    items: tuple[Item, ...]


Item = Value | Series | None
"""What a name in a model stands for; None is an optional value that is not there."""


def tensors_of(item: Item) -> Iterator[Value]:
    """The tensors of an item, in order."""
    if isinstance(item, Series):
        for x in item.items:
            yield from tensors_of(x)
    elif item is not None:
        yield item


def tree_of(item: Item, first: int = 0) -> Tree:
    """The structure of an item, whose tensors are numbered from `first`."""
    if item is None:
        return None
    if isinstance(item, Value):
        return first
    out = []
    for x in item.items:
        out.append(tree_of(x, first))
        first += sum(1 for _ in tensors_of(x))
    return out


def same_structure(a: Item, b: Item) -> bool:
    """Whether two items are alike but for their tensors."""
    return bool(tree_of(a) == tree_of(b))


def with_tensors(item: Item, tensors: Iterator[Value]) -> Item:
    """An item of the same structure with other tensors."""
    if isinstance(item, Series):
        return Series(tuple([with_tensors(x, tensors) for x in item.items]))
    return None if item is None else next(tensors)


# ---- inputs ----------------------------------------------------------------------------------------------------------
@dataclass
class Inputs:
    """The model's inputs as tensors: ValueInfoProtos, the sizes that the user sets, per input its name and the names of
    its tensors as a tree, and the names of those that stand for strings."""
    infos: list[Any]
    shapes: dict[str, Any]
    trees: list[tuple[str, Any]]
    strings: set[str]


def take_apart(infos: Sequence[Any], shapes: Mapping[str, Any]) -> Inputs:
    """`shapes` gives a sequence's elements as a list of their shapes, and None for an optional value that is not there.
    Raises UserError "shape-open", "shape-invalid", "onnx-unsupported-type"."""
    out = Inputs([], dict(shapes), [], set())
    for info in infos:
        if info.type.WhichOneof("value") == "tensor_type":
            out.trees.append((info.name, _tensor(info.name, info, info.type, out)))
            continue
        if info.type.WhichOneof("value") not in ("sequence_type", "optional_type"):
            kind = (info.type.WhichOneof("value") or "no type").removesuffix("_type")
            raise UserError("onnx-unsupported-type", f"inputs are tensors, sequences or optional values, not {kind}",
                            where=f"input {info.name!r}")
        if info.name not in shapes:
            raise UserError("shape-open", f"the structure of the input {info.name!r} must be given: it is a "
                            f"{info.type.WhichOneof('value').removesuffix('_type')}", hint="a sequence's elements: "
                            f'shapes={{"{info.name}": [(2, 3), (4, 3)]}}; an optional value that is not there: None')
        del out.shapes[info.name]
        out.trees.append((info.name, _part(info.name, info, info.type, shapes[info.name], out)))
    return out


def _part(name: str, info: Any, type: Any, shape: Any, out: Inputs) -> Any:
    match type.WhichOneof("value"):
        case "optional_type":
            return None if shape is None else _part(name, info, type.optional_type.elem_type, shape, out)
        case "sequence_type":
            if not isinstance(shape, list | tuple):
                raise UserError("shape-invalid", f"{name} is a sequence: its elements' shapes are a list, not {shape!r}",
                                where=f"shapes[{name!r}]")
            return [_part(f"{name}[{k}]", info, type.sequence_type.elem_type, s, out) for k, s in enumerate(shape)]
        case "tensor_type":
            out.shapes[name] = shape
            leaf = _tensor(name, info, type, out)
            for d in out.infos[-1].type.tensor_type.shape.dim:
                d.ClearField("dim_param")  # elements share no symbols
            return leaf
    raise UserError("onnx-unsupported-type", "elements are tensors, sequences or optional values", where=f"input {name!r}")


def _tensor(name: str, info: Any, type: Any, out: Inputs) -> str:
    leaf = info
    if type is not info.type or type.tensor_type.elem_type == STRING:
        leaf = type_copy(info, name, type)
        if type.tensor_type.elem_type == STRING:
            leaf.type.tensor_type.elem_type = INT64
            out.strings.add(name)
    out.infos.append(leaf)
    return name


def type_copy(info: Any, name: str, type: Any) -> Any:
    """A ValueInfoProto of a name and a type."""
    made = info.__class__()
    made.name = name
    made.type.CopyFrom(type)
    return made
