"""docs/operators.md: which operators there are, written from the tables of the importer and of the graph. In: nothing. Out:
the page's text. A test compares it with the page; `make golden` writes it anew.
"""
from __future__ import annotations

from collections import defaultdict
from typing import Any

from tilewright.frontend.onnx import importer, table
from tilewright.graph import ops
from tilewright.graph.registry import OPS

DOMAINS = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "ai.onnx.preview.training": "ai.onnx.preview.training",
           "com.microsoft": "com.microsoft"}
HEAD = """# Operators

What the importer reads, and what becomes of it. *Compiled*: code of its own, in kernels shared with its neighbours.
*Defined*: put together from other operators, as ONNX defines it. *Host*: the compiled program calls back into Python for
it; compiling warns (`HostWarning`), `Model.host_nodes` lists the nodes, `compile(..., fallback="error")` refuses them, and
`save` does. `tilewright coverage model.onnx` says this of every node of a model.

Sequences and optional values have no operators in the graph: their structure is known while compiling, so they are taken
apart into tensors. Strings are numbers there, which compiled code moves, selects and compares for equality.

This page is written from the tables in the source (`make golden`), with onnx {version}.
"""


def text() -> str:
    """The page."""
    import onnx
    assert importer.TABLES and ops.FAMILIES
    parts = [HEAD.format(version=onnx.__version__)]
    for domain, name in DOMAINS.items():
        rows = _rows(domain)
        if rows:
            parts.append(f"## {name}\n\n| operator | versions | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    hosts = [(name, rec) for name, rec in OPS.items() if rec.host]
    lines = [f"| `{name}` | {rec.doc} | {rec.host} |" for name, rec in hosts]
    parts.append("## On the host\n\n| operator of the graph | meaning | why it is not compiled |\n|---|---|---|\n"
                 + "\n".join(lines) + "\n")
    lines = [f"| `{name}` | {rec.fusion} | {rec.doc} |" for name, rec in OPS.items() if not rec.host]
    parts.append("## The graph's operators\n\nFusion classes are explained in `graph/registry.py`.\n\n"
                 "| operator | fusion | meaning |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(parts).replace(" |  |", " | |")


def _rows(domain: str) -> list[str]:
    """A row per operator that ONNX defines in a domain or the importer's table has."""
    from onnx import defs
    versions: dict[str, list[int]] = defaultdict(list)
    newest: dict[str, Any] = {}
    for s in defs.get_all_schemas_with_history():
        if s.domain == domain:
            versions[s.name].append(s.since_version)
            if s.name not in newest or s.since_version > newest[s.name].since_version:
                newest[s.name] = s
    known = set(table.names(domain))
    rows = []
    for name in sorted(known | set(versions)):
        schema = newest.get(name)
        if name in known:
            status = f"host: `{table.HOST[name]}`" if name in table.HOST else "compiled"
        elif schema is not None and (schema.has_function or schema.has_context_dependent_function):
            status = "defined"
        elif schema is not None and schema.deprecated:
            status = "deprecated"
        else:
            status = "**missing**"
        rows.append(f"| {name} | {', '.join(map(str, sorted(versions.get(name, []))))} | {status} |")
    return rows
