"""legalize_math: exp, log, tanh, erf and gelu of f32 become short sequences of multiply-adds on scalars or vectors.

In: flat loops, vectorized. Out: no Call of these names on f32; on f16 and bf16 they are computed in f32; on f64 they
stay calls of the C library, as do functions that are rare in models (sin, pow, …). Temporaries are Lets around the
statement, so an argument or a result is computed once however often it is used, and equal calls of one statement share
one result. Errors are at most 1.5 units in the last place over the whole range (exp and log below 1), denormal results
included; those of gelu are stated at its coefficients. NaN, infinities and signed zeros come out as IEEE 754 asks. The
condition of a While stays as it is: there is no place for its temporaries.

A call under a Guard may have an argument that must not be evaluated where the guard fails: the argument gets the guard
(with 1 elsewhere) and the function, which is total, moves out.

The polynomials are weighted minimax fits (Lawson's iteration on Chebyshev nodes in float64). Range reductions are the
standard ones: Muller et al., Handbook of Floating-Point Arithmetic, chapter 11; Cody and Waite for ln 2 in two parts.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from tilewright.core.dtype import DType, f32, i32
from tilewright.core.node import Node
from tilewright.loop.ir import (
    FALSE,
    Assert,
    Call,
    Evaluate,
    Expr,
    For,
    Guard,
    If,
    Launch,
    Let,
    Program,
    Select,
    Stmt,
    Store,
    Var,
    While,
    const,
    maximum,
)
from tilewright.target.target import Target

SCALED_LANES = (4, 8, 16)
"""Lanes of the vectors that the instruction of "scale" takes."""



def legalize_math(program: Program, target: Target | None = None, names: Iterable[str] | None = None) -> Program:
    """Calls of transcendental functions, all or those of `names`, on f32, f16 and bf16 replaced by polynomial sequences.
    `target` may have an instruction that multiplies by powers of two ("scale"); results are the same without."""
    chosen = frozenset(_FUNCTIONS if names is None else names)
    return program.replace(body=_Legalizer(target is not None and target.has("scale"), chosen).stmt(program.body))


class _Legalizer:
    """One walk over the statements; `lets` collects the temporaries of the statement at hand."""

    def __init__(self, scale: bool, names: frozenset[str]) -> None:
        self.scale, self.names = scale, names
        self.has: dict[int, tuple[Node, bool]] = {}
        self.lets: list[tuple[Var, Expr]] = []
        self.results: dict[Expr, Expr] = {}
        self.guards: list[tuple[Expr, bool]] = []

    def stmt(self, s: Stmt) -> Stmt:
        if not self.concerned(s):
            return s
        match s:
            case Store() | Evaluate() | Launch():
                return self.around(s, lambda: s.map(self.part))
            case Let(_, value, body):
                inner = self.stmt(body)
                return self.around(s, lambda: s.replace(value=self.expr(value), body=inner))
            case If(cond, then, otherwise):
                arms = self.stmt(then), otherwise and self.stmt(otherwise)
                return self.around(s, lambda: s.replace(cond=self.expr(cond), then=arms[0], otherwise=arms[1]))
            case For(_, start, extent, body):
                inner = self.stmt(body)
                return self.around(s, lambda: s.replace(start=self.expr(start), extent=self.expr(extent), body=inner))
            case Assert(cond):
                return self.around(s, lambda: s.replace(cond=self.expr(cond)))
            case While(_, body):
                return s.replace(body=self.stmt(body))
        return s.map(lambda c: self.stmt(c) if isinstance(c, Stmt) else c)

    def around(self, s: Stmt, build: Callable[[], Stmt]) -> Stmt:
        """The rebuilt statement within the temporaries that its own expressions asked for."""
        self.lets, self.results, self.guards = [], {}, []
        out = build()
        for var, value in reversed(self.lets):
            out = Let(var, value, out).at(s.loc)
        return out

    def part(self, n: Node) -> Node:
        return self.expr(n) if isinstance(n, Expr) else n

    def expr(self, e: Expr) -> Expr:
        if not self.concerned(e):
            return e
        if isinstance(e, Guard):
            cond = self("c", self.guarded(self.expr(e.cond), FALSE))
            sides = []
            for side, holds in ((e.a, True), (e.b, False)):
                self.guards.append((cond, holds))
                sides.append(self.expr(side))
                self.guards.pop()
            return Guard(cond, *sides)
        if self.is_legalized(e):
            return self.call(e)  # type: ignore[arg-type]
        return e.map(self.part)

    def call(self, e: Call) -> Expr:
        x = self.expr(e.args[0])
        x = self.guarded(x, const(1, x)).cast("f32")
        key = Call(e.name, (x,), e.type)
        if key not in self.results:
            arg = x if isinstance(x, Var) else self("x", x)
            self.results[key] = self("y", _FUNCTIONS[e.name](arg, self)).cast(e.type.element)
        return self.results[key]

    def __call__(self, name: str, value: Expr) -> Var:
        """A temporary of the statement at hand."""
        v = Var(name, value.dtype)
        self.lets.append((v, value))
        return v

    def guarded(self, e: Expr, otherwise: Expr) -> Expr:
        for cond, holds in reversed(self.guards):
            e = Guard(cond, e, otherwise) if holds else Guard(cond, otherwise, e)
        return e

    def concerned(self, n: Node) -> bool:
        if n.by_identity:
            return False
        found = self.has.get(id(n))
        if found is None:
            yes = self.is_legalized(n) or any(self.concerned(c) for c in n.children())
            found = self.has[id(n)] = (n, yes)
        return found[1]

    def is_legalized(self, n: Node) -> bool:
        return isinstance(n, Call) and n.name in self.names and n.type.element.name in ("f32", "f16", "bf16")


# ---- building blocks -------------------------------------------------------------------------------------------------
def _fma(a: Expr, b: Expr | float, c: Expr | float) -> Expr:
    operands = [x if isinstance(x, Expr) else const(x, a) for x in (b, c)]
    return Call("fma", (a, *operands), a.dtype)


def _horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """c[0] + c[1]·x + c[2]·x² + …"""
    total: Expr = const(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = _fma(total, x, c)
    return total


def _bits(x: Expr) -> Expr:
    return _call("reinterpret", i32.with_lanes(x.dtype.lanes), x)


def _float(x: Expr) -> Expr:
    return _call("reinterpret", f32.with_lanes(x.dtype.lanes), x)


def _call(name: str, to: DType, *args: Expr) -> Expr:
    return Call(name, args, to)


def _power_of_two(n: Expr) -> Expr:
    """2ⁿ for an i32 in -126 … 127."""
    biased = n + 127
    return _float(_call("shift_left", biased.dtype, biased, const(23, biased)))


def _at_most(x: Expr, limit: float) -> Expr:
    """min(x, limit) that keeps NaN; one instruction on most machines (which Min is not)."""
    return Select(const(limit, x) < x, const(limit, x), x)


def _at_least(x: Expr, limit: float) -> Expr:
    return Select(x < const(limit, x), const(limit, x), x)


def _with_sign_of(x: Expr, magnitude: Expr) -> Expr:
    sign = _call("bit_and", _bits(x).dtype, _bits(x), const(-(1 << 31), _bits(x)))
    return _float(_call("bit_or", sign.dtype, _bits(magnitude), sign))


# ---- the functions ---------------------------------------------------------------------------------------------------
_ROUND = 12582912.0
"""1.5·2²³: adding it rounds an f32 to an integer, found in the low bits. Unlike a conversion it is defined for NaN."""
_ROUND_BITS = 0x4B400000
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860677e-06
"""ln 2 in two parts; the high one has 15 bits, so that its product with an exponent is exact."""
_EXP = (1.0, 1.0, 0.49999994, 0.16666521, 0.041668389, 0.0083687175, 0.0013814596)
"""eʳ for |r| <= ln2/2, relative error 3.1e-9."""
_EXP_LEAST = -103.98
"""Below it eˣ rounds to zero."""
_EXP2 = tuple([c * math.log(2) ** k for k, c in enumerate(_EXP)])
"""2ʳ for |r| <= 1/2."""
GELU_MOST = 14.0
GELU = (-1.0, -1.15110552, -0.459204525, -0.0525090098, 0.00708164321, -0.000146654784, -0.000187420548, 4.2662552e-05,
         -4.01298985e-06, 1.34106187e-07)
"""log2 Φ(-a) for a standard normal distribution, 0 <= a <= 14, weighted so that a Φ(-a) has an absolute error of 6e-8 at
most, rounding included: up to four units in the last place for x > -1; below, less than the usual formula loses."""
_TANH_SMALL = (-0.33333299, 0.13331924, -0.053783827, 0.020795964, -0.0058951504)
"""(tanh(x) - x)/x³ in x², |x| <= 0.6; relative error of tanh 2.8e-9."""
_LOG = (0.33333337, -0.2499982, 0.19999306, -0.16679616, 0.14312834, -0.12195282, 0.1066141, -0.12847128, 0.12357838)
"""(ln(1+f) - f + f²/2)/f³ for |f| <= 1/3."""
ERF_SMALL = (0.12837915, -0.37612498, 0.11281846, -0.02676772, 0.00499483, -0.00059994042)
"""(erf(x) - x)/x in x², |x| <= 0.92; relative error 1.5e-8."""
ERF_LARGE = (0.00018071731, 1.1277376, 0.63707739, 0.10402393, -0.02227157, 0.0030544524, -0.00019708584)
"""-ln(1 - erf(a)) for 0.92 <= a <= 4; error of erf 1.6e-9."""


def _reduce(x: Expr, let: _Legalizer) -> tuple[Expr, Expr]:
    """(n, r) with x = n·ln2 + r, |r| <= ln2/2, n an integer as an f32."""
    n = let("n", _fma(x, math.log2(math.e), _ROUND) - _ROUND)
    return n, let("r", _fma(n, -_LN2_LOW, _fma(n, -_LN2_HIGH, x)))


def _scaled(p: Expr, n: Expr, let: _Legalizer) -> Expr:
    """p · 2ⁿ, rounded once, for an n that is an integer in -151 … 129, as an f32. Without an instruction for it, in two
    halves, since 2ⁿ alone may be denormal or too large; where nothing is left the first is zero."""
    if let.scale and p.dtype.lanes in SCALED_LANES:
        return Call("scale", (p, n), p.dtype)
    k = let("k", _bits(n + _ROUND) - _ROUND_BITS)
    half = let("h", _call("shift_right", k.dtype, k, const(1, k)))
    first = Select(n < -150.0, const(0.0, p), _power_of_two(half))
    return p * first * _power_of_two(k - half)


def _scaled_normal(p: Expr, n: Expr, let: _Legalizer) -> Expr:
    """p · 2ⁿ where 2ⁿ is a normal number."""
    if let.scale and p.dtype.lanes in SCALED_LANES:
        return Call("scale", (p, n), p.dtype)
    return p * _power_of_two(_bits(n + _ROUND) - _ROUND_BITS)


def _exp(x: Expr, let: _Legalizer) -> Expr:
    """Where the result is below half the least denormal, a zero is scaled (some processors take a hundred times longer over
    a product that underflows); -inf comes to it as NaN."""
    if let.scale and x.dtype.lanes in SCALED_LANES:
        n, r = _reduce(let("x", _at_most(x, 89.0)), let)
        return _scaled(Select(x < _EXP_LEAST, const(0.0, x), _horner(r, _EXP)), n, let)
    n, r = _reduce(let("x", _at_least(_at_most(x, 89.0), -105.0)), let)
    return _scaled(_horner(r, _EXP), n, let)


def _gelu(x: Expr, let: _Legalizer) -> Expr:
    """max(x, 0) - a Φ(-a) with a = |x|, where Φ(-a) is two to the power of a polynomial: no cancellation, no cases. The
    polynomial is summed as one of a² and a times another, which halves the time until it is known."""
    a = let("a", _at_most(Call("abs", (x,), x.dtype), GELU_MOST))
    s = let("s", a * a)
    p = let("p", _fma(a, _horner(s, GELU[1::2]), _horner(s, GELU[::2])))
    n = let("n", p + _ROUND - _ROUND)
    tail = _scaled(_horner(let("r", p - n), _EXP2), n, let)
    return _fma(const(0.0, x) - a, tail, maximum(x, 0.0))


def _tanh(x: Expr, let: _Legalizer) -> Expr:
    a = let("a", _at_most(Call("abs", (x,), x.dtype), 9.2))
    n, r = _reduce(let("d", a * 2.0), let)
    large = 1.0 - const(2.0, x) / (_scaled_normal(_horner(r, _EXP), n, let) + 1.0)
    s = let("s", a * a)
    small = _fma(s * a, _horner(s, _TANH_SMALL), a)
    return _with_sign_of(x, Select(a < 0.6, small, large))


def _log(x: Expr, let: _Legalizer) -> Expr:
    """x = 2ᵏ·(1+f) with 1+f in [2/3, 4/3); denormals are scaled up first."""
    tiny = x < 1.1754944e-38
    bits = let("b", _bits(Select(tiny, x * 8388608.0, x)))
    k = let("k", _call("shift_right", bits.dtype, bits - 0x3F2AAAAB, const(23, bits)))
    f = let("f", _float(bits - _call("shift_left", bits.dtype, k, const(23, bits))) - 1.0)
    n = let("n", k.cast(f32) + Select(tiny, const(-23.0, x), const(0.0, x)))
    tail = _fma(f, _horner(f, _LOG), -0.5)
    y = _fma(n, _LN2_HIGH, _fma(f * f, tail, _fma(n, _LN2_LOW, f)))
    inf = const(math.inf, x)
    y = Select(x < inf, y, x)  # inf and NaN
    return Select(const(0.0, x) < x, y, Select(x.eq(0.0), const(-math.inf, x), Select(x < 0.0, const(math.nan, x), x)))


def _erf(x: Expr, let: _Legalizer) -> Expr:
    a = let("a", _at_most(Call("abs", (x,), x.dtype), 4.0))
    n, r = _reduce(let("g", const(0.0, x) - _horner(a, ERF_LARGE)), let)
    large = 1.0 - _scaled_normal(_horner(r, _EXP), n, let)
    s = let("s", a * a)
    small = _fma(a, _horner(s, ERF_SMALL), a)
    return _with_sign_of(x, Select(a < 0.92, small, large))


_FUNCTIONS: dict[str, Callable[[Expr, _Legalizer], Expr]] = {
    "exp": _exp, "log": _log, "tanh": _tanh, "erf": _erf, "gelu": _gelu}
