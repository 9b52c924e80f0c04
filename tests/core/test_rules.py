"""Rules: indexed by type, driven iteratively, counted, and stopped where they never end."""
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


def test_once_visits_each_node_once() -> None:
    rules = make()
    assert rules.rewrite_once(Plus(Plus(Number(1), Number(2)), Number(3))) == Number(6)
    assert rules.rewrite_once(Number(100)) == Plus(Number(25), Number(25))  # the replacement is not looked at again
    assert rules.statistics() == {"fold": 2, "halve_hundred": 1}


def test_fixpoint_rewrites_replacements() -> None:
    rules = make()
    assert rules.rewrite_to_fixpoint(Plus(Number(100), Number(1))) == Number(51)


def test_the_rule_that_never_stops_is_named() -> None:
    rules = Rules("test")

    @rules.on(Plus)
    def swap(e: Plus) -> Term:
        return Plus(e.b, e.a)
    with pytest.raises(InternalError, match=r"no fixed point in 50 rewrites; swap \(.*test_rules.py:\d+\) fired 51 times"):
        rules.rewrite_to_fixpoint(Plus(Number(1), Number(2)), limit=50)


def test_a_rule_is_declared_once_and_knows_its_place() -> None:
    rules = make()
    with pytest.raises(InternalError, match="declared twice"):
        @rules.on(Number)
        def fold(e: Number) -> None:
            return None
    assert [r.name for r in rules.rules] == ["fold", "halve_hundred"]
    assert rules.rules[0].file == __file__ and rules.rules[0].line > 20


def test_location_is_inherited() -> None:
    e = Plus(Number(1), Number(2))
    e.loc = "line 3"
    assert make().rewrite_once(e).loc == "line 3"
    assert make().rewrite_to_fixpoint(e).loc == "line 3"


def test_deep_trees_do_not_exhaust_the_stack() -> None:
    e: Term = Number(1000)
    for _ in range(20_000):
        e = Plus(e, Number(1))
    assert make().rewrite_once(e) == Number(21_000)
    assert make().rewrite_to_fixpoint(e, limit=30_000) == Number(21_000)
