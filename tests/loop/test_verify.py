"""The verifier: every check refuses one broken program, and shows where."""
from typing import Any

import pytest

from tilewright.core.dtype import boolean, f32, f64, handle, i4, i8, i32, i64, u8
from tilewright.core.errors import InternalError
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Add,
    Address,
    Allocate,
    And,
    Assert,
    Block,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Evaluate,
    Expr,
    FloorDiv,
    For,
    Guard,
    If,
    IterVar,
    Let,
    Load,
    Lt,
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
from tilewright.loop.verify import verify

A, N, X, H = Buffer("A", f32, (const(4), const(2))), Var("n"), Var("x", f32), Var("h", handle)
FLOAT, INT = const(1.0, f32), const(1, i32)
FOUR = Ramp(ZERO, ONE, 4)
LOOSE, OTHER = Var("i"), Buffer("B", f32, (ONE,))


def program(body: Stmt) -> Program:
    return Program("p", (A, N, X, H), body)


def refuses(p: Program | Module, message: str, stage: Any = "scheduled") -> str:
    with pytest.raises(InternalError, match=message) as caught:
        verify(p, stage)
    return str(caught.value)


@pytest.mark.parametrize("e, message", [
    (Add(FLOAT, INT), "operands are f32 and i32"), (Add(FLOAT, Broadcast(FLOAT, 4)), "operands are f32 and f32x4"),
    (Add(TRUE, TRUE), "Add of bool"), (FloorDiv(FLOAT, FLOAT), "FloorDiv of f32"), (Lt(TRUE, TRUE), "Lt of bool"),
    (And(ONE, ONE), "And of i64"), (Not(ONE), "Not of i64"), (Select(ONE, X, X), "the condition is i64"),
    (Select(TRUE, X, ONE), "operands are f32 and i64"), (Select(Broadcast(TRUE, 4), X, X), "the condition is boolx4"),
    (Guard(Broadcast(TRUE, 4), Broadcast(X, 4), Broadcast(X, 4)), "the condition is boolx4"),
    (Cast(f64.with_lanes(2), X), "f32 is cast to f64x2"), (Cast(i64, H), "a handle is cast"),
    (Ramp(FLOAT, FLOAT, 4), "a ramp from f32"), (Ramp(ZERO, INT, 4), "by i32"), (Ramp(ZERO, ONE, 1), "a ramp of 1 lanes"),
    (Broadcast(FOUR, 2), "i64x4 is broadcast"), (Const(1, f32), "the f32 constant 1 is a int"),
    (Const(1.0, i64), "is a float"), (Const(True, i64), "is a bool"), (Const(200, i8), "out of the range of i8"),
    (Const(1.0, f32.with_lanes(2)), "a constant is a scalar"), (Load(A, (ZERO,)), "2 dimensions, indexed with 1"),
    (Load(A, (ZERO, FLOAT)), "is f32, not an integer"),
    (Load(A, (FOUR, Ramp(ZERO, ONE, 2))), r"indices with \[2, 4\] lanes"),
    (Load(OTHER, (ZERO,)), "B is not defined"), (LOOSE, "i is not defined"), (Address(A, (ZERO, ZERO)), "only an argument"),
    (Call("expp", (X,), f32), "there is no intrinsic 'expp'"), (Call("exp", (X, X), f32), "exp takes 1 operands, not 2"),
    (Call("exp", (ONE,), i64), "exp of i64 cannot be i64"), (Call("isnan", (X,), f32), "isnan of f32 cannot be f32"),
    (Call("fma", (X, X, ONE), f32), "fma of f32, f32, i64 cannot be f32")])
def test_expressions(e: Expr, message: str) -> None:
    assert "program p(" in refuses(program(Evaluate(e)), message)


def block(**changes: Any) -> Block:
    y, r = Var("y"), Var("r")
    it = (IterVar(y, const(4)), IterVar(r, const(2), "reduce"))
    return Block("b", it, (ZERO, ONE), TRUE, Store(A, (y, r), X)).replace(**changes)


@pytest.mark.parametrize("s, message", [
    (Store(A, (ZERO, ZERO), ONE), "i64 is stored to elements f32"),
    (Store(A, (ZERO, Ramp(ZERO, ONE, 2)), X), "f32 is stored to elements f32x2"),
    (Store(Buffer("T", f32, (ONE,), data=(1.0,)), (ZERO,), X), "the constant table T is stored to"),
    (Store(Buffer("T", f32, (const(2),), data=(1.0,)), (ZERO,), X), "1 elements of data"),
    (If(ONE, Seq(())), "a condition is i64"), (While(X, Seq(())), "a condition is f32"),
    (Assert(ONE, 1, ""), "a condition is i64"), (Let(Var("v"), X, Seq(())), "v is i64, its value f32"),
    (For(Var("i", i32), ZERO, ONE, Seq(())), "has a bound of i64"), (For(Var("i"), X, X, Seq(())), "is f32, not an integer"),
    (For(Var("i"), ZERO, ONE, Seq(()), "sideways"), "no loop kind 'sideways'"),
    (For(LOOSE, ZERO, ONE, For(LOOSE, ZERO, ONE, Seq(()))), "i is defined twice"),
    (seq(For(LOOSE, ZERO, ONE, Seq(())), For(LOOSE, ZERO, ONE, Seq(()))), "i is defined twice"),
    (seq(For(LOOSE, ZERO, ONE, Seq(())), Evaluate(LOOSE)), "i is used outside the scope"),
    (seq(Allocate(OTHER, Seq(())), Store(OTHER, (ZERO,), X)), "B is used outside the scope"),
    (For(LOOSE, ZERO, LOOSE, Seq(())), "i is not defined"), (Let(LOOSE, LOOSE, Seq(())), "i is not defined"),
    (Allocate(OTHER.replace(strides=(ONE, ONE)), Seq(())), "but 2 strides"),
    (Allocate(OTHER.replace(scope="attic"), Seq(())), "unknown scope 'attic'"),
    (Allocate(OTHER.replace(packing=2), Seq(())), "2 elements of f32 do not make a byte"),
    (Allocate(OTHER.replace(dtype=f32.with_lanes(4)), Seq(())), "are vectors"),
    (Allocate(OTHER.replace(shape=(FLOAT,)), Seq(())), "is f32, not an integer"),
    (Allocate(OTHER, Seq(()), X), "is f32, not an integer"),
    (block(bindings=(ZERO,)), "2 iteration variables and 1 bindings"), (block(predicate=ONE), "a condition is i64"),
    (block(bindings=(ZERO, INT)), "limited by i32"), (seq(block(), block()), "two blocks are called b"),
    (block(iters=(IterVar(Var("y"), ONE), IterVar(Var("z"), ONE, "odd"))), "no kind of iteration variable 'odd'")])
def test_statements(s: Stmt, message: str) -> None:
    refuses(program(s), message)


def test_a_right_program_passes_with_everything_in_it() -> None:
    q = Buffer("Q", i4, (const(8),), "local", None, 2)
    table = Buffer("T", u8, (const(2),), "const", data=(1, 2))
    prefetch = Evaluate(Call("prefetch", (Address(A, (ZERO, ZERO)), const(3)), i32))
    inner = seq(block(init=Store(A, (ZERO, ZERO), X)), prefetch, Store(A, (ZERO, Ramp(ZERO, ONE, 2)), Broadcast(X, 2)),
                Evaluate(table[LOOSE]), Evaluate(Select(N < 1, Broadcast(X, 2), Broadcast(X, 2))), Evaluate(H))
    verify(program(For(LOOSE, ZERO, N, Allocate(q, Let(Var("v"), LOOSE + 1, inner)), "parallel")))


def test_the_place_is_marked() -> None:
    text = refuses(program(seq(Store(A, (ZERO, ZERO), X), Evaluate(Add(FLOAT, INT)))), "operands")
    assert "    1.0 + 1:i32\n    ^^^^^^^^^^^" in text


def test_stages() -> None:
    p = program(block())
    assert verify(p, "scheduled") == []
    refuses(p, "the block b is left at stage lowered", "lowered")
    for kind in ("parallel", "vectorized", "unrolled", "vthread"):
        loop = program(For(LOOSE, ZERO, ONE, Seq(()), kind))
        verify(loop, "lowered")
        refuses(loop, f"a loop is still {kind}", "emitted")
    verify(program(For(LOOSE, ZERO, ONE, Seq(()), "threadIdx.x")), "emitted")
    with pytest.raises(InternalError, match="no stage 'later'"):
        verify(p, "later")  # type: ignore[arg-type]


REGISTERS = """
program f(A: f32[64], B: f32[32], n: i64){attrs}:
    alloc acc: f32[2, 32] local
    alloc big: f32[64, 64] local
    for i in 0..2:
        acc[0, ramp(0, 1, 4)] = broadcast(0.0, 4)
        acc[i, 0] = 1.0
        big[i, 0] = acc[1, 31]
        prefetch:i32(&acc[0, 0], 3)
"""


def test_register_tiles_are_indexed_by_constants() -> None:
    p = parse_program(REGISTERS.format(attrs=""))
    assert verify(p, "lowered") == []
    found = [d.message for d in verify(p, "emitted")]
    assert found == ["the register tile acc is not indexed by constants in acc[i, 0] = 1.0",
                     "the address of the register tile acc is taken in &acc[0, 0]"]
    assert verify(parse_program(REGISTERS.format(attrs=' {in_memory=("acc",)}')), "emitted") == []


MODULE = """
program main(A: f32[4], W: u8[16]):
    launch region(&A[0], 1.0) tasks 4
    launch kernel(&W[4], 3)

program region(begin: i64, end: i64, A: f32[4], s: f32):
    for i in begin..+(end - begin):
        A[i] = s

program kernel(A: f32[4], n: i64):
    A[n] = 0.0
"""


def test_launches() -> None:
    verify(parse_module(MODULE), "emitted")
    verify(parse_module(MODULE).programs[0])
    for old, new, message in (
            ("launch kernel(&W[4], 3)", "launch kernel(&W[4])", "kernel takes 2 arguments, not 1"),
            ("launch kernel(&W[4], 3)", "launch kernel(&W[4], 3.0)", "the parameter n of kernel is i64, its argument f32"),
            ("launch kernel(&W[4], 3)", "launch kernels(&W[4], 3)", "there is no program kernels"),
            ("W: u8[16]", "W: i32[16]", "the parameter A of kernel is f32, its argument i32"),
            ("begin: i64", "begin: f32", "the first parameter of region is not"),
            ("program kernel", "program main", "share a name")):
        text = MODULE.replace(old, new)
        if new == "begin: f32":
            text = text.replace("begin..+(end - begin)", "0..end")
        refuses(parse_module(text), message)


def test_a_parameter_may_be_named_by_the_shape_before_it() -> None:
    verify(parse_program("program f(A: f32[n], n: i64):\n    A[n - 1] = 0.0"))
    refuses(Program("f", (N, N), Seq(())), "n is defined twice")
    assert boolean.is_bool and i64.is_int
