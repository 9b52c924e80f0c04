"""The loop IR's verifier: checks what every pass may rely on; a violation is a fault of the compiler.

    stage "scheduled"  anything the IR can say
    stage "lowered"    no blocks
    stage "emitted"    no blocks; loops are serial or bound to GPU threads: the rest was unrolled, vectorized or outlined

At every stage: operands agree in dtype, indices are integers and as many as the buffer has dimensions, everything is
defined once and before its use, block names are unique, launches fit the programs that they name.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tilewright.core.dtype import DType, boolean
from tilewright.core.errors import InternalError
from tilewright.core.node import Node, walk
from tilewright.loop import ir
from tilewright.loop.intrinsics import INTRINSICS
from tilewright.loop.printer import print_around

Stage = Literal["scheduled", "lowered", "emitted"]
REGISTER_BYTES = 8192
"""A local buffer smaller than this is expected to live in registers."""
_GONE_WHEN_EMITTED = ("parallel", "vectorized", "unrolled", "vthread")


@dataclass(frozen=True)
class Diagnostic:
    """A finding that makes code slow, not wrong."""

    message: str
    place: Node


def verify(what: ir.Program | ir.Module, stage: Stage = "scheduled") -> list[Diagnostic]:
    """Raise InternalError, showing the place, unless the program or module is well formed for `stage`.

    Returns, for stage "emitted", the accesses that keep a small local buffer out of registers: an index that is not
    constant, or its address taken. Buffers named in the program's attribute "in_memory" are meant to be so.
    """
    if stage not in get_args(Stage):
        raise InternalError(f"there is no stage {stage!r}")
    programs = what.programs if isinstance(what, ir.Module) else (what,)
    callees = {p.name: p for p in programs} if isinstance(what, ir.Module) else None
    if callees is not None and len(callees) != len(programs):
        raise InternalError(f"programs of a module share a name: {', '.join(p.name for p in programs)}")
    found: list[Diagnostic] = []
    for p in programs:
        check = _Check(p, stage, callees)
        check.program()
        found += check.diagnostics
    return found


class _Check:
    """The walk over one program."""

    def __init__(self, p: ir.Program, stage: Stage, callees: dict[str, ir.Program] | None) -> None:
        self.p, self.stage, self.callees = p, stage, callees
        self.visible: set[Node] = set()
        self.defined: set[Node] = set()
        self.blocks: set[str] = set()
        self.small: dict[Node, bool] = {}
        self.in_memory: tuple[str, ...] = p.attr("in_memory", ())
        self.done: dict[int, Node] = {}  # expressions found right since a definition last went out of scope
        self.diagnostics: list[Diagnostic] = []

    def need(self, holds: bool, message: str, place: Node) -> None:
        if not holds:
            raise InternalError(f"invalid loop IR in {self.p.name}: {message}\n{print_around(self.p, place)}")

    # -- definitions
    def define(self, n: Any, place: Node) -> None:
        self.need(n not in self.defined, f"{n.name} is defined twice", place)
        self.defined.add(n)
        self.visible.add(n)

    def buffer(self, b: ir.Buffer, place: Node) -> None:
        """A buffer's own fields."""
        self.need(b.dtype.lanes == 1, f"the elements of {b.name} are vectors", place)
        self.need(b.scope in get_args(ir.Scope), f"{b.name} has the unknown scope {b.scope!r}", place)
        self.need(b.strides is None or len(b.strides) == b.rank, f"{b.name} has {b.rank} dimensions, but "
                  f"{len(b.strides or ())} strides", place)
        self.need(b.packing == 1 or b.packing * b.dtype.bits == 8, f"{b.packing} elements of {b.dtype} do not make a byte",
                  place)
        for e in (*b.shape, *(b.strides or ())):
            self.index(e, place)
            self.need(e.dtype.lanes == 1, f"a dimension of {b.name} is a vector", place)
        size = [ir.as_int(e) for e in b.shape]
        if b.data is not None:
            total = 1
            for n in size:
                total *= n if n is not None else -1
            self.need(total == len(b.data), f"{b.name} has {len(b.data)} elements of data for its shape", place)
        nbytes: int | None = b.dtype.nbytes
        for n in size:
            nbytes = None if n is None or nbytes is None else nbytes * n
        self.small[b] = b.scope == "local" and nbytes is not None and nbytes < REGISTER_BYTES \
            and b.name not in self.in_memory

    def use(self, n: Any, place: Node) -> None:
        if n not in self.visible:
            if isinstance(n, ir.Buffer) and n.data is not None and n not in self.defined:
                self.buffer(n, place)
                self.defined.add(n)
                self.visible.add(n)
                return
            why = "is used outside the scope of its definition" if n in self.defined else "is not defined"
            self.need(False, f"{n.name} {why}", place)

    # -- expressions
    def expr(self, e: ir.Expr, address: bool = False) -> None:
        """Check an expression; an Address is allowed only where `address` says so."""
        if id(e) in self.done and not isinstance(e, ir.Address):
            return
        self.need(isinstance(e, ir.Expr), f"{type(e).__name__} is not an expression", e)
        if isinstance(e, ir.Address):
            self.need(address, "an address is only an argument of a call or launch", e)
        _EXPRS[type(e)](self, e)
        self.done[id(e)] = e

    def operands(self, e: Any) -> None:
        for a in e.children():
            self.expr(a, isinstance(e, ir.Call))

    def index(self, i: ir.Expr, place: Node) -> None:
        self.expr(i)
        self.need(i.dtype.is_int, f"an index or extent is {i.dtype}, not an integer", place)

    def condition(self, e: ir.Expr, place: Node) -> None:
        self.expr(e)
        self.need(e.dtype is boolean, f"a condition is {e.dtype}, not bool", place)

    def access(self, n: Any) -> None:
        b = n.buffer
        self.use(b, n)
        self.need(len(n.indices) == b.rank, f"{b.name} has {b.rank} dimensions, indexed with {len(n.indices)}", n)
        for i in n.indices:
            self.index(i, n)
        lanes = {i.dtype.lanes for i in n.indices} - {1}
        self.need(len(lanes) <= 1, f"indices with {sorted(lanes)} lanes", n)
        if self.stage == "emitted" and self.small[b]:
            if isinstance(n, ir.Address):
                self.diagnostics.append(Diagnostic(f"the address of the register tile {b.name} is taken in {n!r}", n))
            elif not all(_is_constant(i) for i in n.indices):
                self.diagnostics.append(Diagnostic(f"the register tile {b.name} is not indexed by constants in {n!r}", n))

    # -- statements
    def stmt(self, s: ir.Stmt) -> None:
        self.need(type(s) in _STMTS, f"{type(s).__name__} is not a statement", s)
        _STMTS[type(s)](self, s)

    def within(self, names: tuple[Any, ...], place: Node, check: Callable[[], None]) -> None:
        """Run `check` where `names` are defined."""
        for n in names:
            self.define(n, place)
        check()
        self.visible.difference_update(names)
        self.done.clear()

    def program(self) -> None:
        p = self.p
        for q in p.params:
            self.define(q, p)
        for q in p.params:
            if isinstance(q, ir.Buffer):
                self.buffer(q, p)
        self.stmt(p.body)


def _is_constant(i: ir.Expr) -> bool:
    match i:
        case ir.Const():
            return True
        case ir.Ramp(base, stride, _):
            return isinstance(base, ir.Const) and isinstance(stride, ir.Const)
        case ir.Broadcast(a, _):
            return isinstance(a, ir.Const)
        case _:
            return False


# ---- expressions -----------------------------------------------------------------------------------------------------
def _const(c: _Check, e: ir.Const) -> None:
    t, v = e.type, e.value
    c.need(t.lanes == 1, "a constant is a scalar", e)
    want: type = float if t.is_float else bool if t.is_bool else int
    c.need(type(v) is want, f"the {t} constant {v!r} is a {type(v).__name__}", e)
    if t.is_int:
        lo, hi = t.range()
        c.need(lo <= v <= hi, f"the constant {v} is out of the range of {t}", e)


def _var(c: _Check, e: ir.Var) -> None:
    c.use(e, e)


def _same_operands(c: _Check, e: Any) -> None:
    c.operands(e)
    c.need(e.a.dtype is e.b.dtype, f"operands are {e.a.dtype} and {e.b.dtype}", e)


def _number(c: _Check, e: Any) -> None:
    _same_operands(c, e)
    c.need(e.a.dtype.is_int or e.a.dtype.is_float, f"{type(e).__name__} of {e.a.dtype}", e)


def _integers(c: _Check, e: Any) -> None:
    _same_operands(c, e)
    c.need(e.a.dtype.is_int, f"{type(e).__name__} of {e.a.dtype}", e)


def _bools(c: _Check, e: Any) -> None:
    c.operands(e)
    for a in e.children():
        c.need(a.dtype.is_bool and a.dtype is e.a.dtype, f"{type(e).__name__} of {a.dtype}", e)


def _choice(c: _Check, e: Any) -> None:
    _same_operands(c, e)
    t: DType = e.cond.dtype
    lanes = (1,) if isinstance(e, ir.Guard) else (1, e.a.dtype.lanes)
    c.need(t.is_bool and t.lanes in lanes, f"the condition is {t}", e)


def _cast(c: _Check, e: ir.Cast) -> None:
    c.operands(e)
    c.need(e.type.lanes == e.a.dtype.lanes, f"{e.a.dtype} is cast to {e.type}", e)
    c.need("handle" not in (e.type.kind, e.a.dtype.kind), "a handle is cast", e)


def _ramp(c: _Check, e: ir.Ramp) -> None:
    c.operands(e)
    c.need(e.base.dtype.is_int and e.base.dtype.lanes == 1 and e.stride.dtype is e.base.dtype,
           f"a ramp from {e.base.dtype} by {e.stride.dtype}", e)
    c.need(e.lanes > 1, f"a ramp of {e.lanes} lanes", e)


def _broadcast(c: _Check, e: ir.Broadcast) -> None:
    c.operands(e)
    c.need(e.a.dtype.lanes == 1 and e.lanes > 1, f"{e.a.dtype} is broadcast to {e.lanes} lanes", e)


def _call(c: _Check, e: ir.Call) -> None:
    c.operands(e)
    record = INTRINSICS.get(e.name)
    if record is None:
        c.need(False, f"there is no intrinsic {e.name!r}", e)
        return
    c.need(len(e.args) == record.arity, f"{e.name} takes {record.arity} operands, not {len(e.args)}", e)
    types = tuple([a.dtype for a in e.args])
    c.need(record.result(types, e.type), f"{e.name} of {', '.join(map(repr, types))} cannot be {e.type}", e)


# ---- statements ------------------------------------------------------------------------------------------------------
def _store(c: _Check, s: ir.Store) -> None:
    c.access(s)
    c.expr(s.value)
    want = ir.Load(s.buffer, s.indices).dtype
    c.need(s.value.dtype is want, f"{s.value.dtype} is stored to elements {want}", s)
    c.need(s.buffer.data is None, f"the constant table {s.buffer.name} is stored to", s)


def _evaluate(c: _Check, s: ir.Evaluate) -> None:
    c.expr(s.value)


def _seq(c: _Check, s: ir.Seq) -> None:
    for t in s.stmts:
        c.stmt(t)


def _for(c: _Check, s: ir.For) -> None:
    c.need(s.kind in get_args(ir.LoopKind), f"there is no loop kind {s.kind!r}", s)
    c.need(c.stage != "emitted" or s.kind not in _GONE_WHEN_EMITTED, f"a loop is still {s.kind}", s)
    for e in (s.start, s.extent):
        c.index(e, s)
        c.need(e.dtype is s.var.dtype, f"the loop over {s.var.dtype} {s.var.name} has a bound of {e.dtype}", s)
    c.within((s.var,), s, lambda: c.stmt(s.body))


def _if(c: _Check, s: ir.If) -> None:
    c.condition(s.cond, s)
    c.stmt(s.then)
    if s.otherwise is not None:
        c.stmt(s.otherwise)


def _while(c: _Check, s: ir.While) -> None:
    c.condition(s.cond, s)
    c.stmt(s.body)


def _let(c: _Check, s: ir.Let) -> None:
    c.expr(s.value)
    c.need(s.var.dtype is s.value.dtype, f"{s.var.name} is {s.var.dtype}, its value {s.value.dtype}", s)
    c.within((s.var,), s, lambda: c.stmt(s.body))


def _allocate(c: _Check, s: ir.Allocate) -> None:
    c.buffer(s.buffer, s)
    if s.offset is not None:
        c.index(s.offset, s)
    c.within((s.buffer,), s, lambda: c.stmt(s.body))


def _block(c: _Check, s: ir.Block) -> None:
    c.need(c.stage == "scheduled", f"the block {s.name} is left at stage {c.stage}", s)
    c.need(s.name not in c.blocks, f"two blocks are called {s.name}", s)
    c.blocks.add(s.name)
    c.need(len(s.bindings) == len(s.iters),
           f"the block {s.name} has {len(s.iters)} iteration variables and {len(s.bindings)} bindings", s)
    for it, b in zip(s.iters, s.bindings, strict=True):
        c.need(it.kind in ("spatial", "reduce"), f"there is no kind of iteration variable {it.kind!r}", s)
        for e in (it.extent, b):
            c.index(e, s)
            c.need(e.dtype is it.var.dtype, f"{it.var.name} is {it.var.dtype}, but bound or limited by {e.dtype}", s)

    def inside() -> None:
        c.condition(s.predicate, s)
        if s.init is not None:
            c.stmt(s.init)
        c.stmt(s.body)
    c.within(tuple([it.var for it in s.iters]), s, inside)


def _tensor_call(c: _Check, s: ir.TensorCall) -> None:
    """What keeps a buffer out of registers is not in the body, of which no code is made."""
    for t in s.tiles:
        c.expr(t)
    found = list(c.diagnostics)
    c.stmt(s.body)
    c.diagnostics = found


def _extern_call(c: _Check, s: ir.ExternCall) -> None:
    """A function takes addresses: no buffer of its is expected in registers."""
    found = list(c.diagnostics)
    for a in s.args:
        c.expr(a)
        c.need(a.dtype.lanes == 1, f"the external function {s.symbol} is passed a vector", s)
        c.need(isinstance(a, ir.Load) or not any(isinstance(n, ir.Load) for n in walk(a)),
               f"a number that the external function {s.symbol} is passed is loaded in the call", s)
    c.stmt(s.body)
    c.diagnostics = found


def _launch(c: _Check, s: ir.Launch) -> None:
    for a in s.args:
        c.expr(a, address=True)
    if s.tasks is not None:
        c.index(s.tasks, s)
    c.need(len(s.grid) in (0, 6), f"a grid has 6 extents, not {len(s.grid)}", s)
    for e in s.grid:
        c.index(e, s)
    if c.callees is None:
        return
    if s.callee not in c.callees:  # kernels that a host program calls are in objects of their own
        c.need(bool(c.p.attr("entry")) and s.tasks is None, f"there is no program {s.callee}", s)
        return
    params = list(c.callees[s.callee].params)
    if s.tasks is not None:
        own = 2 if len(params) == len(s.args) + 2 else 1
        c.need(len(params) >= own and all(isinstance(q, ir.Var) and q.dtype.is_int for q in params[:own]),
               f"the first parameter of {s.callee} is not the task's number, nor are the first two a range of tasks", s)
        del params[:own]
    c.need(len(params) == len(s.args), f"{s.callee} takes {len(params)} arguments, not {len(s.args)}", s)
    for q, a in zip(params, s.args, strict=True):
        fits = a.dtype is q.dtype if isinstance(q, ir.Var) else a.dtype.kind == "handle"
        if isinstance(q, ir.Buffer) and isinstance(a, ir.Address):  # bytes may be seen as anything
            fits = a.buffer.dtype is q.dtype or a.buffer.dtype.name == "u8"
        got = a.buffer.dtype if isinstance(a, ir.Address) else a.dtype
        c.need(fits, f"the parameter {q.name} of {s.callee} is {q.dtype}, its argument {got}", s)


def _assert(c: _Check, s: ir.Assert) -> None:
    c.condition(s.cond, s)
    fits = len(s.values) <= 3 and all(v.dtype.name == "i64" for v in s.values)
    c.need(fits, "a message has up to three values, each i64", s)


_EXPRS: dict[type, Callable[[_Check, Any], None]] = {
    ir.Const: _const, ir.Var: _var, ir.Not: _bools, ir.And: _bools, ir.Or: _bools, ir.Select: _choice, ir.Guard: _choice,
    ir.Cast: _cast, ir.Ramp: _ramp, ir.Broadcast: _broadcast, ir.Call: _call, ir.Load: _Check.access,
    ir.Address: _Check.access, ir.FloorDiv: _integers, ir.FloorMod: _integers, ir.Eq: _same_operands,
    ir.Ne: _same_operands, ir.Lt: _number, ir.Le: _number,
    **{op: _number for op in (ir.Add, ir.Sub, ir.Mul, ir.Div, ir.Min, ir.Max)}}
_STMTS: dict[type, Callable[[_Check, Any], None]] = {
    ir.Store: _store, ir.Evaluate: _evaluate, ir.Seq: _seq, ir.For: _for, ir.If: _if, ir.While: _while, ir.Let: _let,
    ir.Allocate: _allocate, ir.Block: _block, ir.Launch: _launch, ir.Assert: _assert,
    ir.TensorCall: _tensor_call, ir.ExternCall: _extern_call}
