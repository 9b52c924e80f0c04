"""Substitution: uses change, definitions do not, and what a program mentions is reported in order."""
from __future__ import annotations

from tilewright.core.dtype import boolean, f32
from tilewright.core.node import alpha_equal
from tilewright.loop.ir import (
    TRUE,
    Add,
    Allocate,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    If,
    IterVar,
    Store,
    Var,
    const,
    expr,
    seq,
)
from tilewright.loop.substitute import buffers_written, free_buffers, free_vars, fresh_copy, substitute

n, i, j = Var("n"), Var("i"), Var("j")
A, B = Buffer("A", f32, (n,)), Buffer("B", f32, (n,))


def test_substitute_replaces_uses_and_keeps_what_is_untouched() -> None:
    untouched = Store(B, (j,), A[j])
    s = seq(Store(B, (i,), A[i + 1]), untouched)
    got = substitute(s, {i: expr(3)})
    assert got == seq(Store(B, (expr(3),), A[Add(expr(3), expr(1))]), untouched)
    assert got.stmts[1] is untouched  # type: ignore[attr-defined]
    assert substitute(s, {}) is s
    assert substitute(s, {n: expr(8)}) is s


def test_substitute_buffers() -> None:
    C = Buffer("C", f32, (n,))
    assert substitute(Store(B, (i,), A[i]), {A: C}) == Store(B, (i,), C[i])
    assert substitute(Store(B, (i,), A[i]), {B: C}) == Store(C, (i,), A[i])


def test_substitute_reaches_extents_inside_binders() -> None:
    v = Var("v")
    b = Block("b", (IterVar(v, n),), (i,), TRUE, Store(B, (v,), const(0.0, f32)))
    got = substitute(For(i, expr(0), n, b), {n: expr(8)})
    assert got.extent == expr(8) and got.body.iters[0].extent == expr(8)  # type: ignore[attr-defined]
    assert got.var is i and got.body.iters[0].var is v  # type: ignore[attr-defined]


def test_substitute_replaces_an_allocated_buffer_whose_shape_changes() -> None:
    T = Buffer("T", f32, (n,), "local")
    s = Allocate(T, Store(T, (i,), A[i]))
    got = substitute(s, {n: expr(8)})
    assert got.buffer is not T and got.buffer.shape == (expr(8),)
    assert got.body.buffer is got.buffer  # type: ignore[attr-defined]
    assert substitute(s, {i: expr(1)}).buffer is T


def test_substitute_survives_deep_expressions() -> None:
    e: Expr = i
    for _ in range(20_000):
        e = Add(e, j)
    got = substitute(e, {i: n})
    depth = 0
    while isinstance(got, Add):
        got, depth = got.a, depth + 1
    assert got is n and depth == 20_000


def test_fresh_copy_renames_every_definition() -> None:
    T, v = Buffer("T", f32, (expr(4),), "local"), Var("v")
    s = For(i, expr(0), n, Allocate(T, Block("b", (IterVar(v, n),), (i,), TRUE, Store(T, (v,), A[v]))))
    got = fresh_copy(s, lambda name: name + "_1")
    assert got.var is not i and got.var.name == "i_1"
    alloc = got.body
    assert alloc.buffer is not T and alloc.buffer.name == "T_1"  # type: ignore[attr-defined]
    block = alloc.body  # type: ignore[attr-defined]
    assert block.iters[0].var is not v and block.bindings == (got.var,)
    assert block.body.buffer is alloc.buffer and block.body.value.buffer is A  # type: ignore[attr-defined]
    assert alpha_equal(s, got)


def test_fresh_copy_of_a_variable_defined_twice() -> None:
    body = Store(B, (i,), A[i + 1])
    got = fresh_copy(seq(For(i, expr(0), expr(4), body), For(i, expr(4), expr(2), body)))
    first, second = got.stmts  # type: ignore[attr-defined]
    assert first.var is not second.var
    assert list(free_vars(got)) == [] and first.body.indices == (first.var,) and second.body.indices == (second.var,)


def test_free_and_touched() -> None:
    T = Buffer("T", f32, (n,), "local")
    s = For(i, expr(0), expr(4), Allocate(T, If(Const(True, boolean), seq(Store(T, (i,), A[i + j]), Store(B, (i,), T[i])))))
    assert list(free_vars(s)) == [j, n] or list(free_vars(s)) == [n, j]
    assert list(free_buffers(s)) == [A, B]
    assert list(buffers_written(s)) == [T, B]
