"""What is checked before and while a model is read: versions, known operators, attributes, order and names of nodes.

Everything that a file says is doubted here; nothing is allocated by its word. All operators that cannot be read are
reported at once.
"""
from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator
from typing import Any

from tilewright.core.errors import UserError
from tilewright.frontend.onnx import schema as sc
from tilewright.frontend.onnx import table
from tilewright.frontend.onnx.schema import Schema

OLDEST_OPSET = 1
MAX_DEPTH = 100
"""Subgraphs within subgraphs, and functions within functions."""
MAX_NODES = 500_000
"""Nodes after functions were put in place: small files can grow without bound."""
_SHOWN = 20

Key = tuple[str, str, str]
Opsets = dict[str, int]


def invalid(message: str, where: str = "") -> UserError:
    return UserError("onnx-invalid-graph", message, where=where)


def domain_of(name: str) -> str:
    """The default domain has two names."""
    return "" if name == "ai.onnx" else name


def node_name(node: Any, index: int) -> str:
    return node.name or f"{node.op_type}_{index}"


def opsets_of(imports: Iterable[Any]) -> Opsets:
    """Domain → version. UserError `onnx-unsupported-opset` for a version of the default domain that is not known."""
    out: Opsets = {}
    for o in imports:
        domain = domain_of(o.domain)
        if isinstance(domain, bytes):
            raise UserError("onnx-malformed", "the name of an operator set is no text (UTF-8)")
        if out.setdefault(domain, o.version) != o.version:
            raise invalid(f"the operator set {domain or 'ai.onnx'!r} is imported as {out[domain]} and as {o.version}")
    version, newest = out.get(""), sc.newest_opset()
    if version is not None and not OLDEST_OPSET <= version <= newest:
        raise UserError("onnx-unsupported-opset", f"the model needs operator set {version}; {OLDEST_OPSET} to {newest} "
                        "are known", hint="upgrade the onnx package" if version > newest else
                        "convert it with onnx.version_converter")
    return out


# ---- operators -------------------------------------------------------------------------------------------------------
def functions_of(model: Any) -> dict[Key, Any]:
    """Model-local functions by domain, name and overload."""
    out: dict[Key, Any] = {}
    for f in model.functions:
        _check_text(f)
        key = (domain_of(f.domain), f.name, f.overload)
        if key in out:
            raise invalid(f"the function {f.name!r} is defined twice")
        out[key] = f
    return out


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs among a node's attributes."""
    for a in node.attribute:
        if a.type == sc.GRAPH or a.HasField("g"):
            yield a.g
        yield from a.graphs


def check_operators(model: Any, opsets: Opsets, functions: dict[Key, Any],
                    custom: Container[tuple[str, str]] = ()) -> None:
    """UserError `onnx-unsupported-op` that names every node whose operator cannot be read, also in subgraphs. `custom`:
    (domain, name) of the user's own."""
    bad: dict[tuple[str, str, int], list[str]] = {}
    seen: set[Any] = set()
    stack: list[tuple[Any, Opsets, int]] = [(model.graph, opsets, 0)]
    while stack:
        holder, versions, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise invalid(f"subgraphs are nested more than {MAX_DEPTH} deep")
        _check_text(holder)
        for k, node in enumerate(holder.node):
            stack.extend((g, versions, depth + 1) for g in subgraphs(node))
            domain = domain_of(node.domain)
            key: Key = (domain, node.op_type, node.overload)
            if (domain, node.op_type) in custom:
                continue
            if key in functions:
                if key not in seen:
                    seen.add(key)
                    stack.append((functions[key], opsets_of(functions[key].opset_import), depth + 1))
                continue
            version = versions.get(domain, 0)
            if not is_readable(domain, node.op_type, version):
                bad.setdefault((domain, node.op_type, version), []).append(node_name(node, k))
    if bad:
        raise _unsupported(bad)


def _check_text(holder: Any) -> None:
    """Names must be text: protocol buffers give bytes for what is not UTF-8."""
    def names() -> Iterator[Any]:
        yield holder.name
        for n in holder.node:
            yield from (n.name, n.op_type, n.domain, n.overload, *n.input, *n.output)
            for a in n.attribute:
                yield from (a.name, a.ref_attr_name)
        for v in (*holder.input, *holder.output):
            if isinstance(v, str | bytes):  # a function's
                yield v
                continue
            yield v.name
            yield from (d.dim_param for d in v.type.tensor_type.shape.dim)
        for t in getattr(holder, "initializer", ()):
            yield t.name
            yield from (x for e in t.external_data for x in (e.key, e.value))
        for o in getattr(holder, "opset_import", ()):
            yield o.domain
    if any(isinstance(name, bytes) for name in names()):
        raise UserError("onnx-malformed", "a name in the model is no text (UTF-8)", hint="the file may be damaged")


def is_readable(domain: str, op: str, version: int) -> bool:
    """Whether an operator has a function in the table, or a definition in terms of such operators."""
    schema = sc.schema_of(domain, op, version) if version else None
    if schema is None or schema.deprecated and schema.inputs == (0, 0):
        return False
    return table.find(domain, op, version) is not None or has_body(schema)


def has_body(schema: Schema) -> bool:
    return schema.raw is not None and bool(schema.raw.has_function or schema.raw.has_context_dependent_function)


def _unsupported(bad: dict[tuple[str, str, int], list[str]]) -> UserError:
    lines = []
    for (domain, op, version), names in sorted(bad.items()):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        of = f"{domain or 'ai.onnx'} {version or '(which the model does not import)'}"
        lines.append(f"{op} ({of}): {', '.join(names[:_SHOWN])}{more}")
    return UserError("onnx-unsupported-op", f"{len(bad)} operators are not supported:\n  " + "\n  ".join(lines))


# ---- attributes ------------------------------------------------------------------------------------------------------
def attributes_of(node: Any, schema: Schema, outer: dict[str, Any] | None,
                  where: str) -> tuple[dict[str, Any], set[str]]:
    """Values of a node's attributes, defaults filled in, and the names of those that it gives.

    `outer` are the attributes of the function around the node, to which it may refer (None outside functions).
    """
    found: dict[str, Any] = {}
    for a in node.attribute:
        name = a.name
        if name in found:
            raise invalid(f"the attribute {name!r} is given twice", where)
        spec = schema.attributes.get(name)
        if spec is None:
            raise invalid(f"{node.op_type} (version {schema.since}) has no attribute {name!r}", where)
        if a.ref_attr_name:
            if outer is None:
                raise invalid(f"the attribute {name!r} refers to a function's attribute outside of one", where)
            if a.ref_attr_name not in outer:
                continue
            a = outer[a.ref_attr_name]
        kind = sc.attribute_kind(a)
        if kind != spec.type:
            raise invalid(f"the attribute {name!r} of {node.op_type} is {sc.kind_name(kind)}, not "
                          f"{sc.kind_name(spec.type)}", where)
        found[name] = sc.attribute_value(a)
    given = set(found)
    for name, spec in schema.attributes.items():
        if name not in found:
            if spec.required:
                raise invalid(f"{node.op_type} needs the attribute {name!r}", where)
            found[name] = spec.default
    return found, given


def check_operands(node: Any, schema: Schema, where: str) -> None:
    """Numbers of inputs and outputs."""
    for what, count, (low, high) in (("inputs", len(node.input), schema.inputs),
                                     ("outputs", len(node.output), schema.outputs)):
        if not low <= count <= high:
            wanted = str(low) if low == high else f"{low} to {high}" if high < sc.INFINITE else f"{low} or more"
            raise invalid(f"{node.op_type} (version {schema.since}) has {count} {what}, {wanted} are expected", where)


# ---- order -----------------------------------------------------------------------------------------------------------
def ordered(nodes: Any, defined: Iterable[str], is_visible: Any) -> list[tuple[int, Any]]:
    """The nodes of one graph, each with its place in the file, ordered so that values are defined before they are used.

    `defined` are the names that the graph starts with, `is_visible(name)` tells those of the graphs around it.
    UserError `onnx-invalid-graph`: a name is defined twice, or nowhere, or in a circle.
    """
    have = set(defined)
    maker: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in maker or name in have:
                raise invalid(f"{name!r} is defined twice", node_name(node, k))
            maker[name] = k
    wait: dict[int, set[int]] = {}
    users: dict[int, list[int]] = {}
    for k, node in enumerate(nodes):
        needs = set()
        for name in [*node.input, *_captured(node)]:
            if name in maker:
                needs.add(maker[name])
            elif name and name not in have and not is_visible(name):
                raise invalid(f"{node.op_type} uses {name!r}, which nothing defines", node_name(node, k))
        wait[k] = needs
        for m in needs:
            users.setdefault(m, []).append(k)
    ready = [k for k, needs in wait.items() if not needs]
    out: list[tuple[int, Any]] = []
    while ready:
        k = heapq.heappop(ready)
        out.append((k, nodes[k]))
        for u in users.get(k, ()):
            wait[u].discard(k)
            if not wait[u]:
                heapq.heappush(ready, u)
    if len(out) != len(wait):
        rest = sorted(k for k, needs in wait.items() if needs)
        raise invalid("nodes depend on each other in a circle: "
                      + ", ".join(node_name(nodes[k], k) for k in rest[:_SHOWN]))
    return out


def _captured(node: Any) -> set[str]:
    """Names that a node's subgraphs take from around them."""
    out: set[str] = set()
    for g in subgraphs(node):
        own = {v.name for v in g.input} | {t.name for t in g.initializer} | {o for n in g.node for o in n.output}
        for n in g.node:
            out |= ({*n.input} | _captured(n)) - own
        out |= {v.name for v in g.output} - own
    return out - {""}
