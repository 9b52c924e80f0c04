"""Printing and parsing: the text is exact, stable, and marks what it is asked to mark."""
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.core.dtype import DType, bf16, boolean, f16, f32, f64, handle, i4, i8, i32, i64, u8, u64
from tilewright.core.errors import UserError
from tilewright.core.node import Node, alpha_equal
from tilewright.loop import ir
from tilewright.loop.interpret import run
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Add,
    Address,
    Allocate,
    Assert,
    Block,
    Broadcast,
    Buffer,
    Call,
    Const,
    Evaluate,
    Expr,
    For,
    Guard,
    If,
    IterVar,
    Launch,
    Let,
    Load,
    Module,
    Not,
    Program,
    Ramp,
    Select,
    Seq,
    Stmt,
    Store,
    Var,
    While,
    const,
    seq,
)
from tilewright.loop.parser import parse_module, parse_program
from tilewright.loop.printer import free_tables, print_around, print_expr, print_module, print_program, print_stmt
from tilewright.loop.verify import verify


def wrapped(*stmts: Stmt) -> Program:
    """A program around statements that use nothing from outside."""
    return Program("p", (), seq(*stmts))


def round_trip(p: Program) -> Program:
    text = print_program(p)
    q = parse_program(text)
    assert print_program(q) == text
    tables: dict[Node, Node] = dict(zip(free_tables([p]), free_tables([q]), strict=True))
    assert alpha_equal(p, q, tables)
    assert print_program(p, canonical=True) == print_program(q, canonical=True)
    return q


def row_sum() -> Program:
    n, i, k, y, r = Var("n"), Var("i"), Var("k"), Var("y"), Var("k")
    a, b = Buffer("A", f32, (n, const(4))), Buffer("B", f32, (n,))
    acc = Buffer("acc", f32, (ONE,), "local")
    block = Block("sum", (IterVar(y, n), IterVar(r, const(4), "reduce")), (i, k), y < n,
                  Store(acc, (ZERO,), acc[0] + a[y, r]), Store(acc, (ZERO,), const(0, f32)))
    body = Allocate(acc, seq(For(k, ZERO, const(4), block), Store(b, (i,), acc[0])))
    return Program("f", (a, b, n), For(i, ZERO, n, body, "parallel", (("grain", 4),)), (("noalias", True),))


TEXT = """\
program f(A: f32[n, 4], B: f32[n], n: i64) {noalias=True}:
    for i in 0..n parallel {grain=4}:
        alloc acc: f32[1] local
        for k in 0..4:
            block sum(y: spatial n = i, k_1: reduce 4 = k) if y < n:
                init:
                    acc[0] = 0.0
                body:
                    acc[0] = acc[0] + A[y, k_1]
        B[i] = acc[0]"""


def test_the_text_of_a_program() -> None:
    assert print_program(row_sum()) == TEXT
    round_trip(row_sum())
    assert repr(row_sum()) == TEXT


def test_canonical_text_ignores_names_and_nothing_else() -> None:
    p, n = row_sum(), Var("rows")
    other = parse_program(TEXT.replace("acc", "sum_").replace("k_1", "z").replace("i ", "row ").replace("= i,", "= row,")
                          .replace("B[i]", "B[row]"))
    assert print_program(other) != print_program(p)
    assert print_program(other, canonical=True) == print_program(p, canonical=True)
    assert "v0" in print_program(p, canonical=True) and n.name not in print_program(p, canonical=True)
    for old, new in (("f32[1] local", "f32[1]"), ("f32[1] local", "f32[1] local strides[2]"), ("0.0", "-0.0"),
                     ("grain=4", "grain=5"), ("parallel", "unrolled"), ("reduce 4", "reduce 5")):
        changed = parse_program(TEXT.replace(old, new, 1))
        assert print_program(changed, canonical=True) != print_program(p, canonical=True), new


def test_canonical_text_is_the_same_in_another_process() -> None:
    p = row_sum()
    code = f"from tilewright.loop.parser import *; from tilewright.loop.printer import *\n" \
           f"print(print_program(parse_program({TEXT!r}), canonical=True), end='')"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={
        "PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)})
    assert got.stdout == print_program(p, canonical=True)


def test_tables_of_data() -> None:
    t = Buffer("T", f32, (const(20),), "const", data=tuple(float(k) for k in range(20)))
    u = Buffer("T", i8, (const(1),), "const", data=(-3,))
    b = Buffer("B", f32, (ONE,))
    p = Program("f", (b,), Store(b, (ZERO,), t[3] + u[0].cast(f32)))
    assert print_program(p).startswith("table T: f32[20] const data (0.0, 1.0, 2.0,")
    assert "table T_1: i8[1] const data (-3,)" in print_program(p)
    round_trip(p)
    assert "<20 values, " in repr(p)
    with pytest.raises(UserError, match="left out"):
        parse_program(repr(p))
    changed = print_program(p).replace("19.0", "19.5")
    assert print_program(parse_program(changed), canonical=True) != print_program(p, canonical=True)
    module = Module((p, p.replace(name="g")))
    assert print_module(module).count("table") == 2
    again = parse_module(print_module(module))
    assert print_module(again) == print_module(module) and free_tables(again.programs) == free_tables(again.programs[:1])


@pytest.mark.parametrize("value, t, text", [
    (1, i64, "1"), (-1, i64, "-1"), (1, i32, "1:i32"), (2**64 - 1, u64, f"{2**64 - 1}:u64"), (1.5, f32, "1.5"),
    (-0.0, f32, "-0.0"), (1e-5, f32, "1e-05"), (math.inf, f32, "inf"), (-math.inf, f64, "-inf:f64"), (math.nan, f32, "nan"),
    (0.1, f64, "0.1:f64"), (5e-324, f64, "5e-324:f64"), (1e22, f16, "1e+22:f16"), (2.0, bf16, "2.0:bf16"),
    (True, boolean, "true"), (False, boolean, "false")])
def test_constants(value: Any, t: DType, text: str) -> None:
    assert print_expr(Const(value, t)) == text
    p = round_trip(wrapped(Evaluate(Const(value, t))))
    assert p.body == Evaluate(Const(value, t))


def test_operators_keep_their_shape() -> None:
    i = Var("i")
    cases = {
        (i - (i - 1)) - 1: "i - (i - 1) - 1", (i + 1) * 2: "(i + 1) * 2", i + Add(ONE, ONE): "i + (1 + 1)",
        i * (i // 2) % 3: "i * (i // 2) % 3", Not(Not(i < 3)): "not not i < 3",
        Not(i < 1) & (i <= 2): "not i < 1 and i <= 2",
        (i < 1).eq(Not(i < 2)): "(i < 1) == (not i < 2)", ((i < 1) | (i < 2)) & (i < 3): "(i < 1 or i < 2) and i < 3",
        (i < 1) | ((i < 2) | (i < 3)): "i < 1 or (i < 2 or i < 3)", i - Const(-1, i64): "i - -1",
        ir.minimum(i, 2) + ir.maximum(i, 3): "min(i, 2) + max(i, 3)"}
    for e, text in cases.items():
        assert print_expr(e) == text
        q = round_trip(Program("p", (i,), Evaluate(e)))
        assert alpha_equal(q.body, Evaluate(e), {q.params[0]: i})


def test_a_long_sum() -> None:
    x = Var("x")
    e: Expr = x
    for _ in range(2_000):
        e = Add(e, x)
    text = print_program(Program("p", (x,), Evaluate(e)))
    assert text.count("+") == 2_000 and print_program(parse_program(text)) == text


def test_rare_forms() -> None:
    n, h, i, w = Var("n"), Var("h", handle), Var("for", i32), Var("a b")
    a = Buffer("A", u8, (n, const(2)), "shared", (const(4), ONE), 1)
    c = Buffer("9", i4, (const(8),), "arena", None, 2)
    z = Buffer("z", f32, ())
    x = Call("exp", (const(1, f32),), f32)
    vector = Ramp(const(0, i64), ONE, 4)
    quads = Load(a, (Broadcast(ZERO, 4), vector))
    stmts = [
        Seq(()), Seq((Seq((Seq(()),)),)), Seq((Store(z, (), x), Seq((Evaluate(x), Evaluate(x))))),
        Store(z, (), Guard(n < 3, z[()], const(2, f32))), Evaluate(Select(TRUE, x, x)), Evaluate(quads),
        Evaluate(Call("isnan", (x,), boolean)), Evaluate(Call("odd name", (), f32)), Evaluate(Call("min", (x,), f32)),
        Evaluate(Call("f32", (x,), f32)), Evaluate(Call("prefetch", (Address(a, (ZERO, ONE)), ONE), i32)),
        Evaluate(x.cast(f64)), Evaluate(Broadcast(x, 8).cast(f16)), Evaluate(h),
        Let(w, n + 1, Evaluate(w)), Let(Var("q", f64), x, Seq(())), Let(Var("q"), n, Seq((Evaluate(x),))),
        Allocate(c, Store(c, (n,), const(3, c.dtype)), n * 64), While(n < 3, Evaluate(x)),
        For(i, const(2, i32), const(5, i32), Evaluate(i), "vectorized",
            (("k", (1, ("a\"\\\n", None, 2.5), f16)), ("a b", -1))),
        For(Var("j"), n, n + 1, If(n < 1, Evaluate(x), If(n < 2, Seq(()), Evaluate(x)))),
        If(n < 1, Evaluate(x), Seq((If(n < 2, Evaluate(x)),))), Assert(n < 3, 7, 'say "é" \\ # not a comment'),
        Launch("a kernel", (Address(z, ()), n), const(4)), Launch("k", ()),
        Block("block 1", (IterVar(Var("y", i32), const(2, i32)),), (const(1, i32),), TRUE, Seq(()), None, (("x", True),)),
        Block("init", (), (), n < 1, seq(Evaluate(x), Evaluate(x)), Seq(()))]
    for s in stmts:
        round_trip(Program("odd name", (a, z, h, n), s))
        round_trip(Program("p", (a, z, h, n), Seq((s, Evaluate(x)))))
    round_trip(Program("p", (a, z, h, n), Seq(tuple(s for s in stmts if not isinstance(s, (Let, Allocate))))))


def test_marks() -> None:
    p = row_sum()
    loop: Any = p.body
    block = loop.body.body.stmts[0].body
    text = print_program(p, mark=block)
    header = "block sum(y: spatial n = i, k_1: reduce 4 = k) if y < n:"
    assert f"{header}\n{' ' * 12}{'^' * len(header)}\n" in text
    assert print_program(p, mark="sum") == text
    assert "for i in 0..n parallel {grain=4}:\n    ^^^^" in print_program(p, mark=loop.var)
    value = block.body.value
    assert " " * 29 + "^" * len("acc[0] + A[y, k_1]") in print_program(p, mark=value)
    assert "k_1: reduce 4 = k" in text
    assert print_stmt(block, mark=block.iters[1].var).split("\n")[1].strip() == "^" * len("k: reduce 4 = k_1")
    around = print_around(p, value, 1).split("\n")
    assert around[0] == "…" and len(around) == 4 and around[-1].endswith("B[i] = acc[0]")
    assert print_around(p, Var("stranger")) == TEXT


def test_names_are_unique() -> None:
    names = [Var("i"), Var("i"), Var("i_1"), Var("x+y"), Var("0"), Var(""), Var("true"), Var("i")]
    body: Stmt = Seq(tuple(Evaluate(v) for v in names))
    for v in names:
        body = For(v, ZERO, ONE, body)
    q = round_trip(wrapped(body))
    assert print_program(q).count("for i in") == 1


@pytest.mark.parametrize("text, message, place", [
    ("program f(:", "expected a name", "line 1, column 11"),
    ("program f():\n    x", "x is not defined", "line 2, column 5"),
    ("program f(x: i64):\n    x + 1.0", "are i64 and f32", "line 2, column 7"),
    ("program f(x: q7):\n    x", "no element type q7", "line 1, column 14"),
    ("program f(A: f32[2]):\n    A[0, 1]", "has 1 dimensions", "line 2, column 5"),
    ("program f(A: f32[2]):\n    A", "A is a buffer", "line 2, column 5"),
    ("program f(x: i64):\n  for x in 0..3:\n    pass", "already defined", "line 2, column 7"),
    ("program f(x: i64):\n  for i in 1..3:\n    pass", "gives its extent", "line 2, column 15"),
    ("program f(x: i64):\n  x = 1", "only an element", "line 2, column 3"),
    ("program f(x: i64):\n  x $ 1", "unexpected character", "line 2, column 5"),
    ("program f(x: i64):\n    x\n  x", "indentation", "line 3, column 3"),
    ("program f(x: i64):\n    x\n      x", "unexpected indentation", "line 3, column 7"),
    ("program f(x: i64):", "expected an indented", "line 2, column 1"),
    ("program f(x: i64):\n    x < 1 < 2", "do not chain", "line 2, column 11"),
    ("program f(x: i64):\n    g()", "must say its type", "line 2, column 5"),
    ("program f(x: i64):\n    x 1", "end of the line", "line 2, column 7"),
    ("program f(x: i64):\n    select(true, x, 1.0)", "are i64 and f32", "line 2, column 5")])
def test_errors_say_where(text: str, message: str, place: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_program(text)
    assert caught.value.code == "loop-syntax" and caught.value.where.startswith(place + "\n")


def test_hand_written_text() -> None:
    p = parse_program("""
# a comment
program f(A: f32[4],
          n: i64):

    for i in 0..4:   # a loop
        if n > i and -n >= -4:
            A[i] = 1.0
    for i in 0..4:
        A[i] = A[i] * 2.0
""")
    verify(p)
    a = np.zeros(4, np.float32)
    run(p, [a, 3])
    assert a.tolist() == [2, 2, 2, 0]
    with pytest.raises(UserError, match="one program was expected"):
        parse_program("")


# ---- random programs -------------------------------------------------------------------------------------------------
TYPES = (f32, f64, f16, bf16, i64, i32, i8, u8, u64, boolean)


class Maker:
    """Draws well-formed programs that stay in bounds; every statement stores to one of two outputs."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.names = st.sampled_from(["i", "j", "i_1", "x.y", "for", "a b", "acc"])
        self.vars: list[Var] = []
        self.buffers = [Buffer("A", f32, (const(5), const(3))), Buffer("B", i32, (const(7),)),
                        Buffer("T", u8, (const(3),), "const", data=(1, 2, 255))]
        self.blocks = 0

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self, t: DType) -> Const:
        if t.is_bool:
            return Const(self.draw(st.booleans()), t)
        if t.is_int:
            return Const(self.draw(st.integers(*t.range())), t)
        return Const(self.draw(st.floats(width=64)), t)

    def expr(self, t: DType, depth: int = 3) -> Expr:
        leaf = depth == 0 or self.draw(st.integers(0, 3)) == 0
        if leaf:
            known = [v for v in self.vars if v.dtype is t]
            return self.pick(*known) if known and self.draw(st.booleans()) else self.number(t)
        kind = self.pick("arith", "arith", "select", "cast", "load", "call", "minmax")
        a = self.expr(t, depth - 1)
        if kind == "select":
            cls = self.pick(Select, Guard)
            return cls(self.expr(boolean, depth - 1), a, self.expr(t, depth - 1))  # type: ignore[no-any-return]
        if kind == "cast":
            return a.cast(self.pick(*TYPES)).cast(t)
        if kind == "load":
            return self.load(depth - 1).cast(t)
        if t.is_bool:
            u = self.pick(*TYPES[:-1])
            x, y = self.expr(u, depth - 1), self.expr(u, depth - 1)
            found: Expr = self.pick(a & self.expr(t, depth - 1), a | self.expr(t, depth - 1), Not(a), x < y, x <= y, x.eq(y),
                                    x.ne(y))
            return found
        b = self.expr(t, depth - 1)
        if kind == "minmax":
            return self.pick(ir.Min, ir.Max)(a, b)  # type: ignore[no-any-return]
        if kind == "call":
            return Call(self.pick("neg", "abs", "sign"), (a,), t)
        divide = [ir.Div(a, b)] if t.is_float else [ir.FloorDiv(a, const(3, t)), ir.FloorMod(a, const(3, t))]
        return self.pick(ir.Add(a, b), ir.Sub(a, b), ir.Mul(a, b), *divide)  # type: ignore[no-any-return]

    def indices(self, b: Buffer, depth: int) -> tuple[Expr, ...]:
        return tuple(self.expr(i64, depth) % n for n in b.shape)

    def load(self, depth: int) -> Load:
        b = self.pick(*self.buffers)
        return Load(b, self.indices(b, depth))

    def stmt(self, depth: int) -> Stmt:
        kind = self.pick("store", "seq", "for", "if", "let", "alloc", "block") if depth else "store"
        if kind == "store":
            b = self.pick(*[b for b in self.buffers if b.data is None])
            return Store(b, self.indices(b, 1), self.expr(b.dtype))
        if kind == "seq":
            return Seq(tuple(self.stmt(depth - 1) for _ in range(self.draw(st.integers(0, 3)))))
        if kind == "if":
            return If(self.expr(boolean), self.stmt(depth - 1), self.stmt(depth - 1) if self.draw(st.booleans()) else None)
        if kind == "alloc":
            return self.allocation(depth)
        if kind == "block":
            return self.block(depth)
        t = i64 if kind == "for" else self.pick(*TYPES)
        var, value = Var(self.draw(self.names), t), self.expr(t, 2)
        self.vars.append(var)
        body = self.stmt(depth - 1)
        self.vars.remove(var)
        if kind == "let":
            return Let(var, value, body)
        return For(var, self.pick(ZERO, ONE, value), const(self.draw(st.integers(0, 3))), body,
                   self.pick("serial", "unrolled", "vectorized"), self.pick((), (("k", 1), ("s", "é\"")), (("t", (1.5,)),)))

    def allocation(self, depth: int) -> Stmt:
        b = Buffer(self.draw(self.names), self.pick(f32, i32, bf16), (const(2), const(2)), self.pick("local", "global"),
                   self.pick(None, (const(3), ONE)))
        cells = [Store(b, (const(y), const(x)), const(0, b.dtype)) for y in range(2) for x in range(2)]
        self.buffers.append(b)
        body = self.stmt(depth - 1)
        self.buffers.remove(b)
        return Allocate(b, seq(*cells, body) if self.draw(st.booleans()) else Seq((*cells, body)))

    def block(self, depth: int) -> Stmt:
        kinds = self.pick((), ("spatial",), ("spatial", "reduce"))
        iters = tuple(IterVar(Var(self.draw(self.names)), const(4), k) for k in kinds)
        bindings = tuple(self.expr(i64, 1) % 4 for _ in iters)
        self.blocks += 1
        name = f"{self.pick('block', 'b c')}{self.blocks}"
        self.vars += [it.var for it in iters]
        predicate = self.pick(TRUE, self.expr(boolean, 1))
        init = self.stmt(depth - 1) if self.draw(st.booleans()) else None
        body = self.stmt(depth - 1)
        for it in iters:
            self.vars.remove(it.var)
        return Block(name, iters, bindings, predicate, body, init)


@st.composite
def programs(draw: Any) -> Program:
    m = Maker(draw)
    params = tuple(m.buffers[:2])
    return Program("random", params, m.stmt(4), draw(st.sampled_from([(), (("noalias", True),)])))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs_round_trip_and_mean_the_same(p: Program) -> None:
    verify(p)
    q = round_trip(p)
    results = []
    for r in (p, q):
        a, b = np.arange(15, dtype=np.float32).reshape(5, 3), np.arange(7, dtype=np.int32)
        run(r, [a, b])
        a[np.isnan(a)] = np.nan  # the sign of a NaN is not kept
        results.append(a.tobytes() + b.tobytes())
    assert results[0] == results[1]


def test_symbolic_sizes_keep_their_spans() -> None:
    text = TEXT.replace("n: i64)", "n: i64 size 1..512 like 7, m: i64 size 0.. times 8)")
    p = round_trip(parse_program(text))
    spans = [v.span for v in p.params if isinstance(v, Var)]
    assert spans == [ir.Span(1, 512, 1, 7), ir.Span(0, None, 8)]
    assert print_program(p, canonical=True) != print_program(parse_program(TEXT), canonical=True)
