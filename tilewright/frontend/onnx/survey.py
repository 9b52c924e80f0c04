"""What becomes of each node of a model: compiled, run on the host, or not supported, all at once. In: a model, which may
hold operators that cannot be read. Out: a report per node, in the order of the file, subgraphs and functions included.

The model is read as for compiling, but a node that cannot be read leaves its results unknown; of the nodes that depend on
them it is only said whether their operator is known.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.core.dtype import f32
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import checks
from tilewright.frontend.onnx.importer import Reader, Scope
from tilewright.frontend.onnx.read import read_model
from tilewright.frontend.onnx.structure import tensors_of
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Operation, Value, tensor_type
from tilewright.graph.registry import record_of, runs_on_host

COMPILED, HOST, MISSING = "compiled", "host", "missing"


@dataclass(frozen=True)
class NodeReport:
    """One node: its name, operator ("domain.Name" outside the default domain) and version of the operator set, the element
    types of its results, what becomes of it, and why."""
    node: str
    operator: str
    opset: int
    dtypes: str
    status: str
    reason: str = ""


def survey(model: Any, shapes: Mapping[str, Any] | None = None) -> list[NodeReport]:
    """Reports of all nodes. Raises UserError where the file or the shapes are wrong."""
    proto, folder = read_model(model)
    opsets, functions = checks.opsets_of(proto.opset_import), checks.functions_of(proto)
    try:
        checks.check_operators(proto, opsets, functions)
    except UserError as e:
        if e.code != "onnx-unsupported-op":
            raise
    reader = _Surveyor(functions, folder)
    reader.main(proto.graph, opsets, shapes or {})
    out = [reader.of(node, k, opsets) for node, k in _nodes(proto.graph)]
    for f in functions.values():
        inner = {"": opsets.get("", 0), **checks.opsets_of(f.opset_import)}
        out += [reader.of(node, k, inner, f"{f.name}/") for node, k in _nodes(f)]
    return out


def _nodes(holder: Any) -> Iterator[tuple[Any, int]]:
    """Nodes with their places, those of subgraphs after their owners."""
    stack = [(node, k) for k, node in enumerate(holder.node)][::-1]
    while stack:
        node, k = stack.pop()
        yield node, k
        stack += [(n, j) for g in checks.subgraphs(node) for j, n in enumerate(g.node)][::-1]


def _key(node: Any) -> tuple[str, ...]:
    """Results have names of their own, so they tell nodes apart."""
    return (node.op_type, node.name, *node.output)


class _Surveyor(Reader):
    """A reader that notes what becomes of nodes, and goes on."""

    def __init__(self, functions: dict[checks.Key, Any], folder: Any) -> None:
        super().__init__(functions, folder)
        self.reports: dict[tuple[str, ...], tuple[str, str, str]] = {}
        self.unknown = Value("unknown", tensor_type(f32, ()))
        self.failures = 0

    def run(self, nodes: Any, scope: Scope, b: GraphBuilder) -> None:
        for k, node in checks.ordered(nodes, scope.values, scope.has):
            self.nodes += 1
            if self.nodes > checks.MAX_NODES:
                raise checks.invalid(f"the model has more than {checks.MAX_NODES} nodes")
            b.loc = loc = scope.prefix + checks.node_name(node, k)
            before, start = self.failures, len(b.operations)
            why = self.attempt(node, loc, scope, b)
            if not why and self.failures > before:
                why = "what it is made of holds an operator that is missing"
            if why:
                self.failures += 1
                self.reports[_key(node)] = ("", MISSING, why)
                scope.values |= {name: self.unknown for name in node.output if name}
            elif _key(node) not in self.reports or self.reports[_key(node)][1] != MISSING:
                self.reports[_key(node)] = (self.types(node, scope), *_become(b.operations[start:]))

    def attempt(self, node: Any, loc: str, scope: Scope, b: GraphBuilder) -> str:
        """Why a node cannot be read; "" if it was."""
        try:
            if any(scope.get(name, loc) is self.unknown for name in node.input if name):
                return "it depends on a result that is not known" if not self.unreadable(node, scope.opsets) else \
                    self.unreadable(node, scope.opsets)
            why = self.unreadable(node, scope.opsets)
            if not why:
                self.node(node, loc, scope, b)
            return why
        except UserError as e:
            return e.message
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as e:
            return f"it does not fit its operands: {e}"

    def unreadable(self, node: Any, opsets: checks.Opsets) -> str:
        """Why an operator is not known; "" if it is."""
        domain = checks.domain_of(node.domain)
        if (domain, node.op_type, node.overload) in self.functions or checks.is_readable(
                domain, node.op_type, opsets.get(domain, 0)):
            return ""
        return "the operator is not supported" if domain in opsets else "the model does not import its operator set"

    def types(self, node: Any, scope: Scope) -> str:
        found = [v for name in node.output if name for v in tensors_of(scope.values.get(name))]
        return ", ".join(dict.fromkeys("string" if v in self.strings else str(v.dtype) for v in found))

    def of(self, node: Any, k: int, opsets: checks.Opsets, prefix: str = "") -> NodeReport:
        """The report of a node; one that was not reached (an If whose branch is known) goes by its operator."""
        domain = checks.domain_of(node.domain)
        dtypes, status, reason = self.reports.get(_key(node)) or self.by_name(node, opsets)
        if status == MISSING and reason.startswith("it depends"):
            dtypes, status, reason = "", COMPILED, "its operator is known, its operands are not"
        return NodeReport(prefix + checks.node_name(node, k), f"{domain}.{node.op_type}" if domain else node.op_type,
                          opsets.get(domain, 0), dtypes, status, reason)

    def by_name(self, node: Any, opsets: checks.Opsets) -> tuple[str, str, str]:
        why = self.unreadable(node, opsets)
        return "", MISSING if why else COMPILED, why or "not reached: its operator is known"


def _become(made: list[Operation]) -> tuple[str, str]:
    """What becomes of the operations that a node was read as. Of those without a recipe, the host runs what says why; for
    the others (nonzero) a pass puts operators that have one."""
    inside = [*made, *[op for o in made for r in o.regions for op in r.operations]]
    hosts = [record_of(op).host for op in inside if runs_on_host(op) and record_of(op).host]
    return (HOST, "; ".join(dict.fromkeys(hosts))) if hosts else (COMPILED, "")
