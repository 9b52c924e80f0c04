"""Rewrite rules: a table indexed by node type. In: a node. Out: what the first rule that applies puts in its place.

    simplify = Rules("simplify")

    @simplify.on(Add)
    def add_zero(e: Add) -> Expr | None:
        return e.a if is_zero(e.b) else None

A rule sees one node whose children were already rewritten and returns its replacement, or None where it does not
apply. Rules of one type are tried in the order of their declaration. Who walks the program, and for how long, is up to
those who apply them: the simplifier (`loop/simplify_expr.py`) carries bounds along.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tilewright.core.errors import InternalError
from tilewright.core.node import Node

F = TypeVar("F", bound=Callable[[Any], Any])


@dataclass(eq=False)
class Rule:
    """One rewrite."""

    name: str
    types: tuple[type[Node], ...]
    rewrite: Callable[[Any], Any]


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
            self.rules.append(Rule(f.__name__, types, f))
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
                if new.loc is None and not new.by_identity:
                    new.loc = n.loc
                return new
        return None
