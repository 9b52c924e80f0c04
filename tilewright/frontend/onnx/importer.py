"""The ONNX frontend: a model file, bytes or ModelProto becomes a Graph. Nothing in the file is executed.

    read → versions and operators checked → inputs typed → nodes in order, each by its function in the table

Model-local functions and operators that ONNX defines in terms of others are put in place node by node.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.signature import Signature, Tree
from tilewright.frontend.onnx import (
    checks,
    ops_attention,
    ops_control,
    ops_einsum,
    ops_linalg,
    ops_math,
    ops_microsoft,
    ops_ml,
    ops_nn,
    ops_old,
    ops_quant,
    ops_recurrent,
    ops_reduce,
    ops_resize,
    ops_sample,
    ops_select,
    ops_sequence,
    ops_shape,
    ops_signal,
    ops_string,
    ops_train,
    ops_trees,
    table,
)
from tilewright.frontend.onnx import schema as sc
from tilewright.frontend.onnx.checks import invalid
from tilewright.frontend.onnx.inputs import input_types
from tilewright.frontend.onnx.read import read_model
from tilewright.frontend.onnx.structure import STRING, Item, Series, take_apart, tensors_of, tree_of
from tilewright.frontend.onnx.tensors import ELEMENT_NUMBERS, to_array
from tilewright.graph.assumed import Joined, broadcast_symbols, joined_sizes
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, Value
from tilewright.graph.ops.custom import CustomOp
from tilewright.loop.ir import Expr, Var, as_int

TABLES = (ops_math, ops_shape, ops_select, ops_reduce, ops_nn, ops_resize, ops_sample, ops_quant, ops_signal, ops_train,
          ops_einsum, ops_linalg, ops_control, ops_recurrent, ops_old, ops_sequence, ops_string, ops_ml, ops_trees,
          ops_microsoft, ops_attention)
"""Importing these enters the operators."""


@dataclass
class Imported:
    """A graph of tensors, and how the model's own inputs and outputs are made of them. `joined`: which symbols of the inputs
    the model needs to be equal to others, or to a number."""
    graph: Graph
    signature: Signature
    joined: Joined = field(default_factory=Joined)


def import_onnx(model: Any, *, shapes: Mapping[str, Any] | None = None, custom_ops: Sequence[CustomOp] = ()) -> Graph:
    """The graph of a model: `import_model` without the signature."""
    return import_model(model, shapes=shapes, custom_ops=custom_ops).graph


def import_model(model: Any, *, shapes: Mapping[str, Any] | None = None, custom_ops: Sequence[CustomOp] = ()) -> Imported:
    """Read an ONNX model (path, bytes or onnx.ModelProto, which is not changed).

    `shapes` sets sizes by name: {"batch": 4} a symbolic dimension, {"image": (1, 3, 224, 224)} an input's whole shape,
    {"image": ("batch", 3, 224, 224)} with names for symbols. Symbolic dimensions that are not set stay symbols.
    `custom_ops` are the user's own operators, which come before those of the same name.
    A sequence has a list of its elements' shapes, an optional value that is not there has None.
    Sizes of inputs that the model's operators need to be equal are one symbol, whatever the file names them: it is then read
    again.

    Raises UserError: onnx-missing-file, onnx-malformed, onnx-unsupported-op, onnx-unsupported-opset,
    onnx-unsupported-type, onnx-unsupported-variant, onnx-external-data, onnx-initializer-size, onnx-invalid-graph,
    onnx-dynamic-value, shape-unknown-name, shape-open, and those of the graph's own checks, with the node's name.
    """
    proto, folder = read_model(model)
    opsets, functions = checks.opsets_of(proto.opset_import), checks.functions_of(proto)
    custom = {(checks.domain_of(domain), name): c for c in custom_ops for domain, name in [c.key]}
    checks.check_operators(proto, opsets, functions, custom)
    arrays: dict[str, Any] = {}
    first = read = Reader(functions, folder, custom, arrays).main(proto.graph, opsets, shapes or {})
    joined: dict[str, Expr] = {}
    while found := joined_sizes(read.graph):
        joined = {name: found.get(e.name, e) if isinstance(e, Var) else e for name, e in joined.items()}
        joined |= {name: e for name, e in found.items() if name not in joined}
        read = Reader(functions, folder, custom, arrays).main(proto.graph, opsets, shapes or {}, joined)
    return replace(read, joined=Joined(first.graph.inputs, joined, broadcast_symbols(first.graph) & joined.keys()))


def check_readable(model: Any) -> None:
    """UserError unless the file is sound and its operators are known, all that are not at once."""
    proto, _ = read_model(model)
    checks.check_operators(proto, checks.opsets_of(proto.opset_import), checks.functions_of(proto))


class Scope:
    """Names that are visible at one place: those of a graph, then those of the graphs around it. None stands for an
    optional input that was left out, or an empty optional value. `attributes` are those of the function around (None
    outside functions)."""

    def __init__(self, opsets: checks.Opsets, outer: Scope | None = None, attributes: dict[str, Any] | None = None,
                 prefix: str = "") -> None:
        self.opsets, self.outer, self.attributes, self.prefix = opsets, outer, attributes, prefix
        self.values: dict[str, Item] = {}

    def inner(self) -> Scope:
        return Scope(self.opsets, self, self.attributes, self.prefix)

    def has(self, name: str) -> bool:
        s: Scope | None = self
        while s is not None:
            if name in s.values:
                return True
            s = s.outer
        return False

    def get(self, name: str, where: str) -> Item:
        s: Scope | None = self
        while s is not None:
            if name in s.values:
                return s.values[name]
            s = s.outer
        raise invalid(f"{name!r} is used, and nothing defines it before", where)


class Reader:
    """Reads the nodes of one model."""

    def __init__(self, functions: dict[checks.Key, Any], folder: Path | None,
                 custom: Mapping[tuple[str, str], CustomOp] = MappingProxyType({}),
                 arrays: dict[str, Any] | None = None) -> None:
        self.functions, self.folder, self.custom = functions, folder, custom
        self.arrays = {} if arrays is None else arrays  # of the model's own weights, which an earlier reading has read
        self.nodes = 0
        self.active: list[Any] = []
        self.strings: set[Value] = set()  # numbers that stand for strings
        self.declared: dict[str, tuple[int, ...]] = {}

    # ---- graphs ------------------------------------------------------------------------------------------------------
    def main(self, proto: Any, opsets: checks.Opsets, shapes: Mapping[str, Any],
             joined: Mapping[str, Expr] = MappingProxyType({})) -> Imported:
        b, scope = GraphBuilder(proto.name or "main"), Scope(opsets)
        fixed = {t.name for t in proto.initializer}
        given = take_apart([v for v in proto.input if v.name not in fixed], shapes)
        made = {name: b.input(name, t) for name, t in input_types(given.infos, given.shapes, joined).items()}
        self.strings |= {made[name] for name in given.strings}
        for name, names in given.trees:
            scope.values[name] = _item(names, made)
        self.declared = _declared_sizes(proto)
        found = self.body(proto, scope, b)
        names = [v.name for v in proto.output]
        outputs: list[Value] = []
        labels: list[str] = []
        trees: list[tuple[str, Tree]] = []
        for name, item in zip(names, found, strict=True):
            trees.append((name, tree_of(item, len(outputs))))
            for label, v in zip(_labels(name, item), tensors_of(item), strict=True):
                labels.append(label)
                if v.is_constant or v in b.inputs or v in outputs:  # each output is a value of its own
                    text = v in self.strings
                    v = b.add("identity", [v], name=label)
                    if text:
                        self.strings.add(v)
                outputs.append(v)
        order = {v: k for k, v in enumerate(b.inputs)}
        signature = Signature(
            tuple([(name, _numbered(names, made, order)) for name, names in given.trees]), tuple(trees),
            frozenset([order[made[name]] for name in given.strings]),
            frozenset([k for k, v in enumerate(outputs) if v in self.strings]))
        return Imported(b.finish(outputs, labels), signature)

    def body(self, proto: Any, scope: Scope, b: GraphBuilder) -> list[Item]:
        """Read a graph's weights and nodes into `b`; the values of its outputs."""
        if proto.sparse_initializer:
            raise UserError("onnx-unsupported-type", "sparse initializers are not supported")
        for t in proto.initializer:
            if t.name in scope.values or not t.name:
                raise invalid(f"the initializer {t.name!r} is defined twice or has no name")
            kept = self.arrays if scope.outer is None else {}
            if t.name not in kept:
                kept[t.name] = to_array(t, self.folder)
            scope.values[t.name] = v = b.constant(kept[t.name], t.name)
            if t.data_type == STRING:
                self.strings.add(v)
        names = [v.name for v in proto.output]
        if len(set(names)) != len(names):
            raise invalid(f"the outputs of {proto.name or 'a graph'!r} have equal names: {', '.join(names)}")
        self.run(proto.node, scope, b)
        return [scope.get(name, f"output {name!r}") for name in names]

    def inline(self, proto: Any, outer: Scope, b: GraphBuilder, items: Sequence[Item]) -> list[Item]:
        """A subgraph's nodes in place, once, with `items` as its inputs; what stands for its outputs."""
        scope = outer.inner()
        if len(proto.input) != len(items):
            raise invalid(f"the subgraph {proto.name!r} has {len(proto.input)} inputs, {len(items)} are given to it")
        scope.values |= {info.name: x for info, x in zip(proto.input, items, strict=True)}
        return self.body(proto, scope, b)

    def region(self, proto: Any, outer: Scope, b: GraphBuilder, values: Sequence[Value]) -> Graph:
        """A subgraph as a region whose inputs are `values`."""
        inner, scope = GraphBuilder(b.unique(proto.name or "body"), b), outer.inner()
        if len(proto.input) != len(values):
            raise invalid(f"the subgraph {proto.name!r} has {len(proto.input)} inputs, {len(values)} are given to it")
        for info, v in zip(proto.input, values, strict=True):
            if info.name in scope.values or not info.name:
                raise invalid(f"two inputs of the subgraph {proto.name!r} are named {info.name!r}")
            v.name = inner.unique(info.name)
            inner.inputs.append(v)
            scope.values[info.name] = v
        found = self.body(proto, scope, inner)
        for name, x in zip([v.name for v in proto.output], found, strict=True):
            if not isinstance(x, Value):
                raise UserError("onnx-unsupported-variant", f"the output {name!r} of the subgraph {proto.name!r} is a "
                                "sequence or an empty optional value, and how often the subgraph runs is not known")
        return inner.finish([x for x in found if isinstance(x, Value)])

    def branches(self, protos: Sequence[Any], outer: Scope, b: GraphBuilder) -> tuple[list[Graph], list[list[Item]]]:
        """Subgraphs without inputs as regions, whose outputs are the tensors of theirs, and the items of each."""
        regions, items = [], []
        for proto in protos:
            inner = GraphBuilder(b.unique(proto.name or "body"), b)
            found = self.body(proto, outer.inner(), inner)
            items.append(found)
            regions.append(inner.finish([v for x in found for v in tensors_of(x)]))
        return regions, items

    # ---- nodes -------------------------------------------------------------------------------------------------------
    def run(self, nodes: Any, scope: Scope, b: GraphBuilder) -> None:
        before = b.loc
        for k, node in checks.ordered(nodes, scope.values, scope.has):
            self.nodes += 1
            if self.nodes > checks.MAX_NODES:
                raise invalid(f"the model has more than {checks.MAX_NODES} nodes after its functions are put in place")
            b.loc = loc = scope.prefix + checks.node_name(node, k)
            try:
                self.node(node, loc, scope, b)
            except UserError as e:
                if e.where:
                    raise
                raise UserError(e.code, e.message, where=loc, hint=e.hint) from e
            except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as e:
                raise invalid(f"{node.op_type} does not fit its operands: {e}", loc) from e
        b.loc = before

    def node(self, node: Any, loc: str, scope: Scope, b: GraphBuilder) -> None:
        domain = checks.domain_of(node.domain)
        inputs = [scope.get(name, loc) if name else None for name in node.input]
        own = self.custom.get((domain, node.op_type))
        if own is not None:
            pairs = [(a.name, self.plain(a, loc)) for a in _resolved(node, scope.attributes).attribute]
            operands = [v for v in inputs if not isinstance(v, Series)]
            if len(operands) != len(inputs):
                raise UserError("onnx-unsupported-variant", f"{node.op_type}: custom operators take no sequences", where=loc)
            made = b.add_all("custom", operands, {"definition": own, "attributes": pairs}, name=node.output[0], loc=loc)
            self.bind(node, made, scope, b, len(b.operations) - 1)
            return
        local = self.functions.get((domain, node.op_type, node.overload))
        if local is not None:
            self.bind(node, self.call(local, node, inputs, loc, scope, b), scope, b, len(b.operations))
            return
        opset = scope.opsets[domain]
        schema = sc.schema_of(domain, node.op_type, opset)
        assert schema is not None
        checks.check_operands(node, schema, loc)
        attributes, given = checks.attributes_of(node, schema, scope.attributes, loc)
        texts = self.string_types(schema, inputs, loc)
        fn = table.find(domain, node.op_type, opset)
        if fn is None:
            node = _resolved(node, scope.attributes)
            body = _definition(schema, opset, node, inputs, scope.opsets)
            found = self.call(body, node, inputs, loc, scope, b, schema)
            self.bind(node, found, scope, b, len(b.operations))
            return

        c = table.Context(
            node.op_type, loc, opset, schema.since, inputs, attributes, list(node.output), b,
            lambda name, values: self.region(attributes[name], scope, b, values),
            lambda name, items=(): self.inline(attributes[name], scope, b, items),
            lambda t: to_array(t, self.folder, loc), frozenset(given),
            lambda *names: self.branches([attributes[name] for name in names], scope, b), self.strings, self.declared,
            lambda name: scope.get(name, loc))
        start = len(b.operations)
        result = fn(c)
        results = [result] if result is None or isinstance(result, Value | Series) else list(result)
        for formal, x in zip(sc.formals(schema, "outputs", len(results)), results, strict=True):
            if formal.type_str in texts or formal.types == {"tensor(string)"}:
                self.strings |= set(tensors_of(x))
        self.bind(node, results, scope, b, start)

    def string_types(self, schema: sc.Schema, inputs: Sequence[Item], loc: str) -> set[str]:
        """The type variables of an operator that stand for strings here. UserError where it takes none."""
        pairs = list(enumerate(zip(sc.formals(schema, "inputs", len(inputs)), inputs, strict=True)))
        text = {k for k, (_, x) in pairs if any(v in self.strings for v in tensors_of(x))}
        out = {formal.type_str for k, (formal, x) in pairs if k in text and isinstance(x, Value)}
        for k, (formal, x) in pairs:
            if k in text and (not any("string" in t for t in formal.types) or schema.name in table.NO_STRINGS):
                raise UserError("onnx-unsupported-type", f"the input {k} of {schema.name} is of strings", where=loc)
            alone = bool(formal.types) and all("string" in t for t in formal.types)
            if isinstance(x, Value) and k not in text and (alone or formal.type_str in out):
                raise UserError("onnx-unsupported-type", f"the input {k} of {schema.name} is not of strings", where=loc)
        return out

    def plain(self, a: Any, loc: str) -> Any:
        """An attribute of a user's operator: numbers, text, lists of them, or an array."""
        value = sc.attribute_value(a)
        if sc.attribute_kind(a) == sc.TENSOR:
            return to_array(value, self.folder, loc)
        if not isinstance(value, int | float | str | list | tuple):
            raise UserError("onnx-unsupported-variant", f"the attribute {a.name!r} of a custom operator is "
                            f"{sc.kind_name(sc.attribute_kind(a))}", where=loc)
        return value

    def bind(self, node: Any, results: Sequence[Item], scope: Scope, b: GraphBuilder, start: int) -> None:
        """Give a node's results their names in the model, where the node made them."""
        made = {v for op in b.operations[start:] for v in op.outputs}
        if len(results) > len(node.output) and not all(r is None for r in results[len(node.output):]):
            results = results[:len(node.output)]
        for k, name in enumerate(node.output):
            if not name:
                continue
            v = results[k] if k < len(results) else None
            if v is None and (k >= len(results) or node.op_type not in ops_sequence.MAY_BE_EMPTY):
                raise UserError("onnx-unsupported-variant", f"the output {k} of {node.op_type} is not supported")
            if isinstance(v, Value) and v in made:
                v.name = b.unique(name)
            scope.values[name] = v

    # ---- functions ---------------------------------------------------------------------------------------------------
    def call(self, f: Any, node: Any, inputs: Sequence[Item], loc: str, scope: Scope, b: GraphBuilder,
             schema: sc.Schema | None = None) -> list[Item]:
        """Put a function's nodes in place of a node that calls it; `schema` gives defaults of attributes."""
        key = (f.domain, f.name, f.overload)
        if key in self.active:
            raise invalid(f"the function {f.name!r} calls itself", loc)
        if len(self.active) >= checks.MAX_DEPTH:
            raise invalid(f"functions are nested more than {checks.MAX_DEPTH} deep", loc)
        if len(inputs) > len(f.input) or len(node.output) > len(f.output):
            raise invalid(f"the function {f.name!r} takes {len(f.input)} inputs and gives {len(f.output)} outputs; "
                          f"{len(inputs)} and {len(node.output)} were given", loc)
        attributes = {a.name: a for a in f.attribute_proto}
        if schema is not None:
            attributes |= {k: schema.raw.attributes[k].default_value for k, a in schema.attributes.items()
                           if a.default is not None}
        attributes |= {a.name: a for a in _resolved(node, scope.attributes).attribute}
        inner = Scope(checks.opsets_of(f.opset_import), None, attributes, f"{loc}/")
        inner.opsets.setdefault("", scope.opsets.get("", 0))
        for k, name in enumerate(f.input):
            inner.values[name] = inputs[k] if k < len(inputs) else None
        self.active.append(key)
        try:
            self.run(f.node, inner, b)
        finally:
            self.active.pop()
        return [inner.get(name, loc) if inner.has(name) else None for name in f.output]


def _resolved(node: Any, outer: dict[str, Any] | None) -> Any:
    """The node with the values of the function's attributes that it refers to."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    out = type(node)()
    out.CopyFrom(node)
    del out.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            out.attribute.append(a)
        elif outer is not None and a.ref_attr_name in outer:
            found = out.attribute.add()
            found.CopyFrom(outer[a.ref_attr_name])
            found.name = a.name
    return out


def _item(names: Any, made: Mapping[str, Value]) -> Item:
    """An item of the tree of its tensors' names."""
    return made[names] if isinstance(names, str) else None if names is None else Series(
        tuple([_item(x, made) for x in names]))


def _numbered(names: Any, made: Mapping[str, Value], order: Mapping[Value, int]) -> Tree:
    return order[made[names]] if isinstance(names, str) else None if names is None else [
        _numbered(x, made, order) for x in names]


def _labels(name: str, item: Item) -> Iterable[str]:
    """Names for the tensors of an output."""
    if isinstance(item, Series):
        for k, x in enumerate(item.items):
            yield from _labels(f"{name}[{k}]", x)
    elif item is not None:
        yield name


def _declared_sizes(proto: Any) -> dict[str, tuple[int, ...]]:
    """Shapes that the model itself gives for values, where they are numbers."""
    out = {}
    for info in (*proto.value_info, *proto.output):
        t = info.type.tensor_type
        if info.type.WhichOneof("value") == "tensor_type" and t.HasField("shape") and all(
                d.WhichOneof("value") == "dim_value" and d.dim_value >= 0 for d in t.shape.dim):
            out[info.name] = tuple([d.dim_value for d in t.shape.dim])
    return out


def _definition(schema: sc.Schema, opset: int, node: Any, inputs: Sequence[Item],
                outer: checks.Opsets) -> Any:
    """The body that ONNX itself gives an operator, as a FunctionProto."""
    import onnx
    s, f = schema.raw, onnx.FunctionProto()
    if s.has_function:
        f.ParseFromString(s.get_function_with_opset_version(_newest(s.function_opset_versions, opset)))
    else:
        version = _newest(s.context_dependent_function_opset_versions, opset)
        types = [_type_proto(v).SerializeToString() for v in inputs]
        f.ParseFromString(s.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types))
    if not f.node:
        raise UserError("onnx-unsupported-op", f"1 operators are not supported:\n  {node.op_type} (ai.onnx {opset})")
    functions: dict[checks.Key, Any] = {}
    checks.check_operators(_Holder(f), {**outer, **checks.opsets_of(f.opset_import)}, functions)
    return f


class _Holder:
    """Looks like a model to `check_operators`."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph


def _newest(versions: Sequence[int], opset: int) -> int:
    fitting = [v for v in versions if v <= opset]
    return max(fitting) if fitting else min(versions)


def _type_proto(v: Item) -> Any:
    import onnx
    t = onnx.TypeProto()
    if isinstance(v, Value):
        t.tensor_type.elem_type = ELEMENT_NUMBERS[v.dtype.name]
        t.tensor_type.shape.SetInParent()
        for d in v.shape:
            n = as_int(d)
            size = t.tensor_type.shape.dim.add()
            if n is not None:
                size.dim_value = n
    return t
