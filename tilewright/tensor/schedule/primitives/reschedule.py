"""reschedule: the steps of a perfect nest in another order, given by an affine map of its variables to the new loops.

    reschedule([i, j], lambda i, j: (i + j, j))         the wavefronts of a nest: all j of one are independent

    for i in 0..4:                           for d in 0..11:
      for j in 0..8:                   →       for j in max(0, d - 3) .. min(7, d) + 1:
        block C(vi = i, vj = j)                  block C(vi = d - j, vj = j)

Shifts (`i + 1`), reversals (`-i`), interchange (`j, i`), skews (`i + 2*j`), strip-mining (`i // 4, j, i % 4`) and fusion
(`i*8 + j`) are such maps, and all that they compose to.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from tilewright.loop.affine import affine_of
from tilewright.loop.ir import (
    ZERO,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Lt,
    Max,
    Min,
    Program,
    Stmt,
    Var,
    as_int,
    const,
    maximum,
    minimum,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule.dependences import order_violation
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.order import made_in_each_step
from tilewright.tensor.schedule.primitives.loops import nested, rebind
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, edit, find_loop, loops_around, refuse
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

NAME = "reschedule"


@primitive
def reschedule(sch: Schedule, loops: Sequence[Var], index_map: IndexMap) -> list[Var]:
    """Run the steps of perfectly nested serial loops, outermost first, in the order of what `index_map` makes of their
    variables; there is a new loop for each of its results.

    The map must be one-to-one: its results, or groups of them, are unimodular in the loops' variables and their digits
    (x // c, x % c), or a mixed-radix number of them. Bounds of the loops may depend on loops around them, before and after.
    Legal if dependent steps keep their order. Raises ScheduleError, with two steps that would change places where there
    are such.
    """
    nest = nested(sch, NAME, loops, dependent=True)
    for f in nest:
        if f.kind != "serial":
            raise ScheduleError(NAME, f"loop {f.var.name} is {f.kind}: reschedule before", sch.program, f.var)
    given = [f.var for f in nest]
    if len(index_map.axes) != len(nest):
        raise ScheduleError(NAME, f"the map takes {len(index_map.axes)} variables, and there are {len(nest)} loops",
                            sch.program, given[0])
    around = loops_around(sch.program, nest[0])
    made = _inverted(sch, nest, index_map(*given), around)
    new: Stmt = nest[-1].body
    bounds = _bounds(made, [*around], sch)
    for v, (start, extent) in zip(reversed(made.loops), reversed(bounds), strict=True):
        new = For(v, start, extent, new, "serial")
    mapping = {v: e for v, e in made.values.items() if e is not v}
    changed = edit(sch.program, nest[0], rebind(new, mapping, made.cut, around))
    top = find_loop(changed, made.loops[0])
    found = order_violation(sch.program, nest, made.order, lambda buffer: made_in_each_step(changed, top, buffer))
    if found is not None:
        refuse(NAME, found.why, sch.program, given[0], example=lambda: found.steps)
    sch.program = changed
    return made.loops


@dataclass
class _Inverse:
    """`loops`: the new variables; `values`: the old ones in terms of them; `rows`: forms that are not negative, over the new
    ones; `order`: by what the steps are ordered, over the old ones; `cut`: what else a step must hold."""
    loops: list[Var]
    values: dict[Var, Expr]
    rows: list[Expr]
    order: list[Expr]
    cut: Expr | None


@dataclass(frozen=True)
class _Digit:
    """(v // below) % size of a loop's variable v; the leading digit has no size (None)."""
    of: Var
    below: int
    size: int | None


@dataclass
class _Solved:
    """`value`: each digit in terms of the new loops; `numbers`: by its place the result that numbers several digits, as
    `_mixed_radix` says; `rows`: what holds of these numbers, as forms that are not negative."""
    value: dict[_Digit, Expr]
    numbers: dict[int, list[tuple[_Digit, int, int]]]
    rows: list[Expr]


def _inverted(sch: Schedule, nest: list[For], places: Sequence[Expr], around: list[For]) -> _Inverse:
    """The old variables in terms of the new loops."""
    own = {f.var: f for f in nest}
    algebra = Algebra([*around, *nest])
    forms = [affine_of(e, {}).terms for e in places]
    digits = _digits(sch.program, forms, own)
    rows, rests = _in_digits(sch.program, forms, own, digits, around)
    new = [_name(e, own) for e in places]
    sizes = {v: _constant_range(own[v], algebra) for v in own}
    solved = _solved(sch.program, rows, rests, new, places, sizes)
    order: list[Expr] = []
    for k, place in enumerate(places):
        order += [_digit_of(d) for d, _, _ in reversed(solved.numbers[k])] if k in solved.numbers else [place]
    result = _Inverse(new, {}, [*solved.rows], order, None)
    numbered = {d for number in solved.numbers.values() for d, _, _ in number}
    for v, f in own.items():
        _put_together(result, f, digits[v], solved.value, numbered, sizes[v])
    return result


def _in_digits(program: Program, forms: Sequence[dict[tuple[Expr, ...], int]], own: dict[Var, For],
               digits: dict[Var, list[_Digit]], around: list[For]) -> tuple[list[dict[_Digit, int]], list[Expr]]:
    """Each result of the map as a sum of digits and a rest that is constant in the nest. Raises ScheduleError if a digit is
    in none of them."""
    rows: list[dict[_Digit, int]] = []
    rests: list[Expr] = []
    for k, terms in enumerate(forms):
        r: dict[_Digit, int] = {}
        rest: dict[tuple[Expr, ...], int] = {}
        for monomial, c in terms.items():
            if not any(v in own for a in monomial for v in vars_of(a)):
                rest[monomial] = c
                continue
            for d, n in _of_atom(program, monomial, own, digits):
                r[d] = r.get(d, 0) + n * c
        rows.append({d: n for d, n in r.items() if n})
        rests.append(_expr(rest))
        _visible(program, rests[k], around, k)
    used = {d for r in rows for d in r}
    lost = next((d for ds in digits.values() for d in ds if d not in used), None)
    if lost is not None:
        raise ScheduleError(NAME, f"the new order does not tell steps of loop {lost.of.name} apart", program, lost.of)
    return rows, rests


def _solved(program: Program, rows: list[dict[_Digit, int]], rests: list[Expr], new: list[Var], places: Sequence[Expr],
            sizes: dict[Var, tuple[int, int] | None]) -> _Solved:
    """The digits from the results, by groups of results that share some: a result alone is a number of its digits, several
    are inverted as a matrix. Raises ScheduleError where that gives no integers."""
    variables = list(sizes)
    out = _Solved({}, {}, [])
    for group in _groups(rows):
        members = sorted({d for k in group for d in rows[k]}, key=lambda d: (variables.index(d.of), -d.below))
        if len(group) == 1 and len(members) > 1:
            k = group[0]
            number = out.numbers[k] = _mixed_radix(program, rows[k], sizes)
            at = new[k] - rests[k]
            total = 1
            for d, c, n in number:
                q = at if c == 1 else at // c
                out.value[d] = q if d == number[-1][0] else q % n
                total *= n
            out.rows += [at, const(total - 1) - at]
            continue
        inverse = _unimodular([[rows[k].get(d, 0) for d in members] for k in group]) if len(group) == len(members) else None
        if inverse is None:
            raise ScheduleError(NAME, "the map is not shown to be one-to-one: "
                                + ", ".join(f"{new[k].name} = {places[k]}" for k in group), program, variables[0],
                                hint="give as many results as variables, of determinant 1 or -1")
        for d, line in zip(members, inverse, strict=True):
            e: Expr = ZERO
            for k, c in zip(group, line, strict=True):
                if c:
                    e = e + (new[k] - rests[k]) * c
            out.value[d] = e
    return out


def _put_together(result: _Inverse, f: For, digits: list[_Digit], value: dict[_Digit, Expr], numbered: set[_Digit],
                  found: tuple[int, int] | None) -> None:
    """Enter the variable of an old loop, made of its digits, and that it stays in the loop's range (constant: `found`)."""
    whole: Expr = ZERO
    for d in digits:
        whole = whole + value[d] * d.below
        if d.size is not None and d not in numbered:
            result.rows += [value[d], const(d.size - 1) - value[d]]
    result.values[f.var] = whole
    if not numbered & set(digits):
        result.rows += _range_rows(whole, substitute(f.start, result.values), substitute(f.extent, result.values))
        return
    assert found is not None
    lead = digits[0]
    if lead not in numbered:
        result.rows += [value[lead], const(-(-found[1] // lead.below) - 1) - value[lead]]
    if found[1] % lead.below:
        cond = Lt(whole, const(found[1]))
        result.cut = cond if result.cut is None else result.cut & cond


def _digit_of(d: _Digit) -> Expr:
    q: Expr = d.of // d.below if d.below > 1 else d.of
    return q if d.size is None else q % d.size


def _range_rows(e: Expr, start: Expr, extent: Expr) -> list[Expr]:
    """start <= e < start + extent, as forms that are not negative."""
    return [*_parts(e - start, Min), *_parts(start + extent - 1 - e, Min)]


def _parts(e: Expr, cls: type) -> list[Expr]:
    """Forms that are all >= 0 just where `e` is: minima (and maxima that are subtracted) taken apart."""
    e = Algebra(()).simplify(e)
    for monomial, c in affine_of(e, {}).terms.items():
        if len(monomial) == 1 and isinstance(monomial[0], Min | Max) and isinstance(monomial[0], Min if c > 0 else Max):
            m = monomial[0]
            return [*_parts(e + (m.a - m) * c, cls), *_parts(e + (m.b - m) * c, cls)]
    return [e]


def _visible(program: Program, e: Expr, around: list[For], k: int) -> None:
    seen = {*[f.var for f in around], *[p for p in program.params if isinstance(p, Var)]}
    stray = vars_of(e) - seen
    if stray:
        raise ScheduleError(NAME, f"result {k} of the map uses {stray.pop().name}, which is no size of the program and no "
                            "loop around the nest", program)


def _digits(program: Program, forms: Sequence[dict[tuple[Expr, ...], int]], own: dict[Var, For]) -> dict[Var, list[_Digit]]:
    """The digits that the map takes each variable apart into, the leading one first."""
    cuts: dict[Var, set[int]] = {v: set() for v in own}
    for terms in forms:
        for monomial in terms:
            for a in monomial:
                while isinstance(a, FloorDiv | FloorMod):
                    c = as_int(a.b)
                    base = a.a.a if isinstance(a, FloorMod) and isinstance(a.a, FloorDiv) else a.a
                    if c is None or c < 1 or not isinstance(base, Var) or base not in own:
                        break
                    inner = as_int(a.a.b) if isinstance(a.a, FloorDiv) else 1
                    assert inner is not None
                    cuts[base] |= {inner * c, inner} if isinstance(a, FloorMod) else {c}
                    break
    out: dict[Var, list[_Digit]] = {}
    for v, found in cuts.items():
        places = sorted({1, *found})
        for small, large in pairwise(places):
            if large % small:
                raise ScheduleError(NAME, f"{v.name} is divided by {small} and by {large}, and neither divides the other",
                                    program, v)
        sizes = [large // small for small, large in pairwise(places)]
        out[v] = [_Digit(v, p, n) for p, n in reversed([*zip(places, [*sizes, None], strict=True)])]
    return out


def _of_atom(program: Program, monomial: tuple[Expr, ...], own: dict[Var, For],
             digits: dict[Var, list[_Digit]]) -> list[tuple[_Digit, int]]:
    """An atom of the map as a sum of digits."""
    a = monomial[0]
    if len(monomial) == 1:
        if isinstance(a, Var):
            return [(d, d.below) for d in digits[a]]
        base, below, size = a, 1, None
        if isinstance(base, FloorMod):
            size, base = as_int(base.b), base.a
        if isinstance(base, FloorDiv) and (c := as_int(base.b)) is not None:
            below, base = c, base.a
        if isinstance(base, Var) and base in own and (size is not None or isinstance(a, FloorDiv)):
            top = None if size is None else below * size
            return [(d, d.below // below) for d in digits[base] if d.below >= below and (top is None or d.below < top)]
    raise ScheduleError(NAME, f"{a} is no variable of the nest, no quotient and no remainder of one by a constant", program,
                        next(iter(own)))


def _groups(rows: Sequence[dict[_Digit, int]]) -> list[list[int]]:
    """Rows that have digits in common, together."""
    groups: list[tuple[list[int], set[_Digit]]] = []
    for k, r in enumerate(rows):
        members, found = [k], set(r)
        for g in [g for g in groups if g[1] & set(r)]:
            groups.remove(g)
            members, found = [*g[0], *members], found | g[1]
        groups.append((sorted(members), found))
    return [g[0] for g in groups]


def _constant_range(f: For, algebra: Algebra) -> tuple[int, int] | None:
    start, extent = algebra.constant(f.start), algebra.constant(f.extent)
    return None if start is None or extent is None or extent < 1 else (start, extent)


def _mixed_radix(program: Program, r: dict[_Digit, int],
                 sizes: dict[Var, tuple[int, int] | None]) -> list[tuple[_Digit, int, int]]:
    """(digit, its place value, its size), from the last digit on, of a row that numbers all settings of its digits."""
    out, place = [], 1
    for d, c in sorted(r.items(), key=lambda p: abs(p[1])):
        found = sizes[d.of]
        if found is None or found[0] != 0:
            raise ScheduleError(NAME, f"loop {d.of.name} does not run from 0 to a constant: its steps are not numbered",
                                program, d.of)
        n = -(-found[1] // d.below) if d.size is None else d.size
        if c != place:
            raise ScheduleError(NAME, "the map is not shown to be one-to-one: in a number of several digits, that of loop "
                                f"{d.of.name} would need the place value {place}, not {c}", program, d.of)
        out.append((d, place, n))
        place *= n
    return out


def _unimodular(m: list[list[int]]) -> list[list[int]] | None:
    """The inverse of an integer matrix of determinant 1 or -1, or None (Gauss-Jordan elimination)."""
    n = len(m)
    a = [[Fraction(x) for x in line] + [Fraction(int(i == j)) for j in range(n)] for i, line in enumerate(m)]
    for col in range(n):
        pivot = next((k for k in range(col, n) if a[k][col]), None)
        if pivot is None:
            return None
        a[col], a[pivot] = a[pivot], a[col]
        a[col] = [x / a[col][col] for x in a[col]]
        for k in range(n):
            if k != col and a[k][col]:
                a[k] = [x - a[k][col] * y for x, y in zip(a[k], a[col], strict=True)]
    inverse = [line[n:] for line in a]
    whole = all(x.denominator == 1 for line in inverse for x in line)
    return [[int(x) for x in line] for line in inverse] if whole else None


def _name(e: Expr, own: dict[Var, For]) -> Var:
    """The variable of a new loop: the old one's where that is all it runs over."""
    if isinstance(e, Var) and e in own:
        return e
    return Var("_".join(dict.fromkeys(v.name for v in own if v in vars_of(e))) + "_r" if vars_of(e) & set(own) else "r")


# ---- bounds of the new loops ------------------------------------------------------------------------------------------
def _bounds(made: _Inverse, around: list[For], sch: Schedule) -> list[tuple[Expr, Expr]]:
    """(start, extent) of each new loop in terms of those outside of it: what the rows say once the inner ones are
    eliminated."""
    rows = [affine_of(Algebra(()).simplify(e), {}).terms for e in made.rows]
    loops = made.loops
    for terms in rows:
        for monomial in terms:
            plain = len(monomial) == 1 and isinstance(monomial[0], Var)
            if not plain and any(v in loops for a in monomial for v in vars_of(a)):
                raise ScheduleError(NAME, f"the bounds of the new loops are not linear ({monomial[0]})", sch.program)
    system = [dict(t) for t in rows]
    out: list[tuple[Expr, Expr]] = []
    levels: list[list[dict[tuple[Expr, ...], int]]] = []
    for v in reversed(loops):
        levels.append([r for r in system if r.get((v,))])
        system = _eliminated(system, (v,))
    algebra = Algebra(around)
    outer = list(around)
    for v, level in zip(loops, reversed(levels), strict=True):
        lows, highs = [], []
        for r in level:
            c = r[(v,)]
            rest = _expr({m: -n if c > 0 else n for m, n in r.items() if m != (v,)})
            if c > 0:
                lows.append(algebra.simplify((rest + (c - 1)) // c if c > 1 else rest))
            else:
                highs.append(algebra.simplify(rest // -c if c < -1 else rest))
        if not lows or not highs:
            raise ScheduleError(NAME, f"the new loop {v.name} has no bounds", sch.program)
        low = _strongest(lows, algebra, maximum)
        high = _strongest(highs, algebra, minimum)
        start, extent = algebra.simplify(low), algebra.simplify(high - low + 1)
        out.append((start, extent))
        outer.append(For(v, start, extent, sch.program.body))
        algebra = Algebra(outer)
    return out


def _eliminated(rows: list[dict[tuple[Expr, ...], int]], key: tuple[Expr, ...]) -> list[dict[tuple[Expr, ...], int]]:
    """Fourier-Motzkin: the rows without one variable."""
    out = [r for r in rows if not r.get(key)]
    for a in rows:
        for b in rows:
            p, q = a.get(key, 0), b.get(key, 0)
            if p > 0 > q:
                g = math.gcd(p, q)
                new: dict[tuple[Expr, ...], int] = {}
                for r, times in ((a, -q // g), (b, p // g)):
                    for m, n in r.items():
                        new[m] = new.get(m, 0) + n * times
                new = {m: n for m, n in new.items() if n and m != key}
                if any(new) and new not in out:
                    out.append(new)
    return out


def _expr(terms: dict[tuple[Expr, ...], int]) -> Expr:
    out: Expr = ZERO
    for m, c in terms.items():
        term: Expr = const(c)
        for a in m:
            term = term * a
        out = out + term
    return out


def _strongest(found: list[Expr], algebra: Algebra, join: object) -> Expr:
    """The tightest of some bounds: those that others imply left out."""
    kept: list[Expr] = []
    for k, e in enumerate(found):
        others = [*kept, *found[k + 1:]]
        implied = any(algebra.at_most(e, o) if join is maximum else algebra.at_most(o, e) for o in others)
        if not implied:
            kept.append(e)
    out = kept[0]
    for e in kept[1:]:
        out = maximum(out, e) if join is maximum else minimum(out, e)
    return out

