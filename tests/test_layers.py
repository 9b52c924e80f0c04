"""The layers of the compiler, read from the source: who imports whom, and that every file says what it is."""
from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tilewright"

# layer → the layers it may import. Everything below a layer's neighbours is open to it, too.
BELOW: dict[str, set[str]] = {
    "core": set(),
    "target": {"core"},
    "loop": {"core", "target"},
    "tensor": {"core", "target", "loop"},
    "graph": {"core", "target", "loop", "tensor"},
    "frontend": {"core", "target", "loop", "tensor", "graph"},
    "codegen": {"core", "target", "loop"},
    "runtime": {"core"},
}
# Modules that stand in a layer's folder, where their users look for them, and work above the driver.
ENTRIES = {"frontend.onnx.backend": "onnx_backend"}
# These see every layer; of each other only those to their left.
TOP = ("bundle", "broadcasts", "kernels", "hosting", "model", "driver", "function", "te", "onnx_backend", "tools",
       "__main__")
# Tables name → module, loaded when first used, and the command line, whose libraries are an optional extra.
LAZY = {"__init__.py", "tools/cli.py", "tensor/schedule/primitives/__init__.py"}
LOADERS = ("import_module", "__import__")

FILES = sorted(PACKAGE.rglob("*.py"))
assert FILES


def name_of(path: Path) -> str:
    """The module of a file: tilewright/loop/ir.py → loop.ir, tilewright/loop/__init__.py → loop."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = {name_of(p): p for p in FILES}


def own_imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules of ours that the imports below `node` name (without `tilewright.`), with their lines."""
    for n in ast.walk(node):
        names: list[str] = []
        if isinstance(n, ast.Import):
            names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = "tilewright.relative" if n.level else n.module or ""  # relative imports are not used
            names = [f"{base}.{a.name}" for a in n.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "tilewright":
                yield (rest if rest in MODULES else rest.rpartition(".")[0]), getattr(n, "lineno", 0)


def edges() -> dict[str, set[str]]:
    """Module → modules that it imports."""
    return {m: {to for to, _ in own_imports(tree_of(p))} - {""} for m, p in MODULES.items()}


def layer(module: str) -> str:
    return ENTRIES.get(module, module.split(".")[0])


def allowed(source: str, to: str) -> bool:
    a, b = layer(source), layer(to)
    if a == b or source == "":
        return True
    if a in TOP:
        return b not in TOP or TOP.index(b) < TOP.index(a)
    return b in BELOW[a]


def test_every_module_is_in_a_layer() -> None:
    assert {layer(m) for m in MODULES} - {""} <= {*BELOW, *TOP}


def test_imports_name_modules_that_exist() -> None:
    wrong = [f"{a} imports {b}" for a, outs in edges().items() for b in sorted(outs - set(MODULES))]
    assert not wrong, "\n".join(wrong)


def test_imports_go_down() -> None:
    wrong = [f"{a} imports {b}" for a, outs in edges().items() for b in sorted(outs) if not allowed(a, b)]
    assert not wrong, "\n".join(wrong)


def test_the_rule_sees_an_upward_import() -> None:
    assert not allowed("core.node", "loop.ir") and not allowed("tensor.compute", "graph.ir")
    assert not allowed("codegen.llvm.emit", "tensor.compute") and not allowed("runtime.module", "loop.ir")
    assert not allowed("frontend.onnx.importer", "driver") and allowed("frontend.onnx.backend", "driver")
    assert not allowed("frontend.onnx.importer", "frontend.onnx.backend")
    assert not allowed("graph.plan", "driver") and not allowed("model", "driver") and allowed("driver", "model")
    found = list(own_imports(ast.parse("def f():\n    from tilewright.loop import ir\n    import tilewright.core.node")))
    assert found == [("loop.ir", 2), ("core.node", 3)]


def test_modules_have_no_cycle() -> None:
    graph, done, stack = edges(), set[str](), list[str]()

    def visit(m: str) -> None:
        assert m not in stack, "a cycle of imports: " + " → ".join([*stack[stack.index(m):], m])
        if m not in done:
            stack.append(m)
            for to in sorted(graph.get(m, ())):
                visit(to)
            done.add(stack.pop())

    for m in sorted(graph):
        visit(m)


def test_no_import_of_ours_inside_a_function() -> None:
    wrong = []
    for path in FILES:
        for f in ast.walk(tree_of(path)):
            if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                wrong += [f"{path}:{line} imports {to} inside a function" for to, line in own_imports(f)]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_modules_are_loaded_by_name_in_three_places_only() -> None:
    """`import_module` would hide an edge; the three places that do are declared."""
    found = set()
    for path in FILES:
        for n in ast.walk(tree_of(path)):
            if (n.attr if isinstance(n, ast.Attribute) else n.id if isinstance(n, ast.Name) else "") in LOADERS:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == LAZY


def test_every_file_says_what_it_is() -> None:
    """A docstring that opens with a sentence; an empty __init__.py has nothing to say."""
    wrong = []
    for path in FILES:
        if path.name == "__init__.py" and not tree_of(path).body:
            continue
        paragraph = " ".join((ast.get_docstring(tree_of(path)) or "").split("\n\n")[0].split())
        if len(paragraph.split()) < 4 or not any(end in paragraph + " " for end in (". ", ": ", "? ")):
            wrong.append(f"{path}: {paragraph!r}")
    assert not wrong, "\n".join(wrong)
