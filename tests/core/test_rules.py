"""Rules: indexed by type, tried in order, declared once."""
from __future__ import annotations

import pytest

from tilewright.core.errors import InternalError
from tilewright.core.node import Node, node
from tilewright.core.rules import Rules


class Term(Node):
    __slots__ = ()


@node
class Number(Term):
    value: int


@node
class Plus(Term):
    a: Term
    b: Term


def make() -> Rules:
    rules = Rules("test")

    @rules.on(Plus)
    def fold(e: Plus) -> Term | None:
        return Number(e.a.value + e.b.value) if isinstance(e.a, Number) and isinstance(e.b, Number) else None

    @rules.on(Number)
    def halve_hundred(e: Number) -> Term | None:
        return Plus(Number(25), Number(25)) if e.value == 100 else None
    return rules


def test_the_first_rule_that_applies_gives_the_replacement() -> None:
    rules = make()

    @rules.on(Term)
    def last(e: Term) -> Term | None:
        return Number(0) if isinstance(e, Plus) else None
    assert [r.name for r in rules.of(Plus)] == ["fold", "last"] and [r.name for r in rules.of(Number)] == [
        "halve_hundred", "last"]
    assert rules.apply(Plus(Number(1), Number(2))) == Number(3)
    assert rules.apply(Plus(Plus(Number(1), Number(2)), Number(3))) == Number(0)  # only the node itself is looked at
    assert rules.apply(Number(100)) == Plus(Number(25), Number(25)) and rules.apply(Number(1)) is None


def test_a_rule_is_declared_once() -> None:
    rules = make()
    with pytest.raises(InternalError, match="declared twice"):
        @rules.on(Number)
        def fold(e: Number) -> None:
            return None
    assert [r.name for r in rules.rules] == ["fold", "halve_hundred"]


def test_location_is_inherited() -> None:
    e = Plus(Number(1), Number(2))
    e.loc = "line 3"
    assert make().apply(e).loc == "line 3"
