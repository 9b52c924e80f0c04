"""How far the indices of an access go where loops have symbolic extents: used by compact_storage.

In: an index expression, the statements around it. Out: its greatest value as an expression over sizes, or None.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tilewright.core.node import walk
from tilewright.loop.bounds import prove
from tilewright.loop.ir import And, Expr, FloorDiv, For, If, Le, Let, Lt, Stmt, Var, as_int
from tilewright.loop.lower.linear import Terms, from_linear, is_scalar_int, linear
from tilewright.loop.simplify import simplify


def reaches_end(index: Expr, extent: Expr, path: Sequence[Stmt]) -> bool:
    """Whether `index` runs from 0 to `extent` - 1 over the loops of `path`, the statements around an access from the
    outermost that counts on, under the conditions there."""
    loops = {s.var: s for s in path if isinstance(s, For)}
    inner = {*loops, *[s.var for s in path if isinstance(s, Let)]}
    conditions = [c for s, below in pairwise(path) if isinstance(s, If) and below is s.then for c in _parts(s.cond)]
    if any(isinstance(s, If) and below is not s.then for s, below in pairwise(path)):
        return False
    top = _top(index, loops, inner, conditions)
    return top is not None and prove(Le(extent - 1, top))


def _top(e: Expr, loops: dict[Var, For], inner: set[Var], conditions: list[Lt | Le]) -> Expr | None:
    """The greatest value of an index that is 0 where all loops begin; None if that is not known."""
    terms, constant = linear(e)
    if constant != 0:
        return None
    if len(terms) == 1:
        ((atom, c),) = terms.items()
        k = as_int(atom.b) if isinstance(atom, FloorDiv) else None
        if isinstance(atom, FloorDiv) and c == 1 and k is not None and k > 0:
            top = _top(atom.a, loops, inner, conditions)
            return None if top is None else simplify(top // k)
    found: Expr | None = None
    for atom, c in terms.items():
        if not isinstance(atom, Var) or atom not in loops or c < 0 or as_int(loops[atom].start) != 0:
            return None
        part = (loops[atom].extent - 1) * c
        found = part if found is None else found + part
    if found is None:
        return None
    found = simplify(found)
    for condition in conditions:
        limit = _limit(terms, condition, inner)
        if limit is None:
            return None
        if limit and not prove(Le(found, limit[0])):
            if not prove(Le(limit[0], found)):
                return None
            found = limit[0]
    return found


def _limit(terms: Terms, condition: Lt | Le, inner: set[Var]) -> tuple[Expr, ...] | None:
    """The greatest value that a condition leaves to Σ terms: (), if it says nothing of them; None if that is not known."""
    form, constant = linear(condition.a - condition.b)
    bound = {a: c for a, c in form.items() if any(n in inner for n in walk(a) if isinstance(n, Var))}
    mine = {a: c for a, c in bound.items() if a in terms}
    if not any(n in terms for a in bound for n in walk(a)):
        return ()
    a0, c0 = next(iter(terms.items()))
    m = mine.get(a0, 0) // c0
    if m <= 0 or mine != {a: c * m for a, c in terms.items()} or any(
            not isinstance(a, Var) or c < 0 for a, c in bound.items()):
        return None
    rest = from_linear([(a, -c) for a, c in form.items() if a not in bound], -constant - isinstance(condition, Lt),
                       condition.a)
    return (simplify(rest // m),)


def _parts(cond: Expr) -> list[Lt | Le]:
    """The comparisons of integers of which all must hold."""
    match cond:
        case And(a, b):
            return _parts(a) + _parts(b)
        case Lt(a, b) | Le(a, b) if is_scalar_int(a) and is_scalar_int(b):
            return [cond]
    return []
