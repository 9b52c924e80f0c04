"""Rewrite rules: a table indexed by node type, with two iterative drivers.

    simplify = Rules("simplify")

    @simplify.on(Add)
    def add_zero(e: Add) -> Expr | None:
        return e.a if is_zero(e.b) else None

A rule sees one node whose children were already rewritten and returns its replacement, or None where it does not
apply. Rules of one type are tried in the order of their declaration. Each rule knows its name, file and line, and
counts how often it fired.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tilewright.core.errors import InternalError
from tilewright.core.node import Node, transform

N = TypeVar("N", bound=Node)
F = TypeVar("F", bound=Callable[[Any], Any])


@dataclass(eq=False)
class Rule:
    """One rewrite. `fired` counts the replacements it made in this process."""

    name: str
    types: tuple[type[Node], ...]
    rewrite: Callable[[Any], Any]
    file: str
    line: int
    fired: int = field(default=0)

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


class Rules:
    """A named table of rules."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rules: list[Rule] = []
        self._of_type: dict[type[Node], tuple[Rule, ...]] = {}

    def on(self, *types: type[Node]) -> Callable[[F], F]:
        """Decorator: enter a function as a rule for nodes of these types (and their subclasses)."""
        def enter(f: F) -> F:
            if any(r.name == f.__name__ for r in self.rules):
                raise InternalError(f"the rule {f.__name__} of {self.name} is declared twice")
            code = f.__code__
            self.rules.append(Rule(f.__name__, types, f, code.co_filename, code.co_firstlineno))
            self._of_type.clear()
            return f
        return enter

    def of(self, cls: type[Node]) -> tuple[Rule, ...]:
        """The rules for nodes of a class, in order of declaration."""
        found = self._of_type.get(cls)
        if found is None:
            found = tuple([r for r in self.rules if issubclass(cls, r.types)])
            self._of_type[cls] = found
        return found

    def apply(self, n: Node) -> Any:
        """The replacement by the first rule that applies to this node itself, else None."""
        for rule in self.of(type(n)):
            new = rule.rewrite(n)
            if new is not None:
                rule.fired += 1
                if new.loc is None and not new.by_identity:
                    new.loc = n.loc
                return new
        return None

    def rewrite_once(self, root: N) -> N:
        """One walk, children first; each node is rewritten at most once, and replacements are not looked at again."""
        def visit(n: Any) -> Any:
            new = self.apply(n)
            return n if new is None else new
        return transform(root, visit)

    def rewrite_to_fixpoint(self, root: N, limit: int = 100_000) -> N:
        """Rewrite until no rule applies anywhere. Raises InternalError naming the busiest rule after `limit` rewrites."""
        done: dict[int, Any] = {}
        kept: list[Node] = []  # keys of `done` are identities: their nodes must stay alive
        fired: dict[Rule, int] = {}
        stack: list[tuple[Node, Node, bool]] = [(root, root, False)]
        while stack:
            origin, n, ready = stack.pop()
            if id(origin) in done:
                continue
            if n is not origin and id(n) in done:
                done[id(origin)] = done[id(n)]
                continue
            if not ready:
                stack.append((origin, n, True))
                stack.extend((c, c, False) for c in n.children() if id(c) not in done)
                continue
            current = n.map(lambda c: done[id(c)])
            new = self._fire(current, fired, limit)
            kept += (n, current)
            if new is None:
                done[id(origin)] = done[id(n)] = done[id(current)] = current
            else:
                kept.append(new)
                stack.append((origin, new, False))
        result: N = done[id(root)]
        return result

    def _fire(self, n: Node, fired: dict[Rule, int], limit: int) -> Any:
        before = {r: r.fired for r in self.of(type(n))}
        new = self.apply(n)
        if new is None:
            return None
        for r, count in before.items():
            if r.fired > count:
                fired[r] = fired.get(r, 0) + 1
        if sum(fired.values()) > limit:
            busiest = max(fired, key=lambda r: fired[r])
            raise InternalError(f"the rules {self.name} reach no fixed point in {limit} rewrites; "
                                f"{busiest} fired {fired[busiest]} times, last giving {new!r:.200}")
        return new

    def statistics(self) -> dict[str, int]:
        """How often each rule fired in this process, by name."""
        return {r.name: r.fired for r in self.rules}
