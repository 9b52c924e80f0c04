"""LLVM code generation, the page to write on: one function's text, its SSA names, and the scopes that they live in.

A scope is a stretch of code entered by one way: the entry, a loop's body, a branch. Pure integer operations are written
once per scope: in the outermost scope where their operands exist, before the branch that leads to the inner ones, so that
addresses leave the loops here and LLVM has less to look at.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tilewright.loop import ir
from tilewright.target.target import Target

Lines = list[Any]  # of str and of nested Lines


class Scope:
    """`hoisted` is the text before the latest branch into an inner scope, `known` what the scope computed."""

    __slots__ = ("hoisted", "known")

    def __init__(self) -> None:
        self.hoisted: Lines = []
        self.known: dict[str, str] = {}


class Memory:
    """Where a buffer lives: the SSA name of its first element and the alignment of that, in bytes."""

    __slots__ = ("align", "pointer")

    def __init__(self, pointer: str, align: int) -> None:
        self.pointer, self.align = pointer, align


class ModuleText:
    """What functions of one module share: declarations of callees, constants, metadata."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.declarations: dict[str, str] = {}
        self.globals: list[str] = []
        self.global_names: dict[Any, str] = {}
        self.metadata: list[str] = []
        self.functions: list[str] = []
        self.defined: dict[str, int] = {}  # programs and their numbers of parameters

    def declare(self, name: str, text: str) -> None:
        self.declarations.setdefault(name, text)

    def node(self, text: str) -> str:
        """The name of a new metadata node, which is called `!self` in its text."""
        name = f"!{len(self.metadata)}"
        self.metadata.append(text.replace("!self", name))
        return name


class Function:
    """The state while one program is written. `value(expr)` gives the SSA name of an expression's value."""

    def __init__(self, module: ModuleText, flags: str, value: Callable[[Function, ir.Expr], str]) -> None:
        self.module, self.target = module, module.target
        self.flags = flags + " " if flags else ""
        self.contract = "contract" in flags
        self._value = value
        self.allocas: Lines = []
        self.lines: Lines = [self.allocas]
        self.label = "entry"
        self.names = 0
        self.labels = 0
        self.closure_slots = 0
        self.turn = ""  # the variable of the innermost loop around the current place
        self.scopes: list[Scope] = [Scope()]
        self.depth: dict[str, int] = {}
        self.vars: dict[ir.Var, str] = {}
        self.affine: dict[ir.Var, dict[tuple[str, ...], int]] = {}
        self.memory: dict[ir.Buffer, Memory] = {}
        self.nonnegative: set[str] = set()
        self.memo: dict[int, str] = {}

    def value(self, e: ir.Expr) -> str:
        return self._value(self, e)

    # ---- text ----
    def fresh(self, depth: int | None = None) -> str:
        self.names += 1
        name = f"%v{self.names}"
        self.depth[name] = len(self.scopes) - 1 if depth is None else depth
        return name

    def fresh_label(self, hint: str) -> str:
        self.labels += 1
        return f"{hint}{self.labels}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        """An instruction here; its value's name."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def pure(self, text: str, *operands: str) -> str:
        """A cheap pure operation without traps, in the outermost scope that has its operands."""
        depth = 0
        for o in operands:
            depth = max(depth, self.depth.get(o, 0))
        scope = self.scopes[depth]
        got = scope.known.get(text)
        if got is None:
            got = self.fresh(depth)
            here = self.lines if depth == len(self.scopes) - 1 else scope.hoisted
            here.append(f"  {got} = {text}")
            scope.known[text] = got
        return got

    def branch(self, text: str) -> None:
        """The terminator by which control enters scopes inside of this one; hoisted operations go before it."""
        hoisted: Lines = []
        self.scopes[-1].hoisted = hoisted
        self.lines.append(hoisted)
        self.line(text)

    def start(self, label: str) -> None:
        """Begin the basic block `label`."""
        self.lines.append(f"{label}:")
        self.label = label

    # ---- scopes ----
    @contextmanager
    def scope(self) -> Iterator[None]:
        """Code that only runs by way of this point. What it computes is forgotten afterwards."""
        memo = self.memo
        self.memo = dict(memo)
        self.scopes.append(Scope())
        try:
            yield
        finally:
            self.scopes.pop()
            self.memo = memo

    def statement(self) -> None:
        """Between statements memory may change: values of the last one may not be used again."""
        if self.memo:
            self.memo = {}

    def text(self) -> list[str]:
        flat: list[str] = []
        stack = [iter(self.lines)]
        while stack:
            for x in stack[-1]:
                if isinstance(x, list):
                    stack.append(iter(x))
                    break
                flat.append(x)
            else:
                stack.pop()
        return flat
