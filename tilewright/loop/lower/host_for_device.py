"""host_for_device: the host program of a model whose kernels work in a device's memory.

In: a host program as for a CPU, of constant sizes. Out: the same for a device, where the arena and the weights have their
like: inputs and outputs get places behind the arena's end and are copied there and back; copies happen on the device; and
what the host itself reads or writes of the arena (conditions, numbers of turns) is copied at the same address. Launches
that are the same in every run are within tw_replay and tw_captured, so that a device may capture them as a graph.

    main(in_x, out_y):                        main(in_x, out_y):
      launch k(in_x, t)                         tw_upload(x, in_x)
      if t[0]: …                          →     launch k(x, t); tw_download(t, t)
      copy_bytes(out_y, t)                      if t[0]: …
                                                tw_move(y, t); tw_download(out_y, y)
"""
from __future__ import annotations

from tilewright.core.dtype import i64
from tilewright.core.errors import UserError
from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    HOST_CALL,
    ZERO,
    Address,
    Allocate,
    Assert,
    Buffer,
    Call,
    Evaluate,
    Expr,
    For,
    If,
    Launch,
    Let,
    Load,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    While,
    as_int,
    const,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.target.target import Target

ALIGN = 64
ERROR_VALUE = 4
"""TW_ERROR_VALUE of tilewright.h."""


def host_for_device(main: Program, inputs: int, arena_bytes: int, target: Target) -> tuple[Program, int]:
    """The program, and the bytes of its arena; the first `inputs` parameters are read, the others written. Inputs of 64-bit
    integers are checked first if the device computes in 32 bits. Raises UserError "device-sizes" for a program whose sizes
    are not all constant, or that calls back; "device-memory" for an arena that is more than the device can bind."""
    _require_constant(main)
    places: dict[Buffer, Buffer] = {}
    body: Stmt = main.body
    end = arena_bytes
    offsets: list[tuple[Buffer, int]] = []
    for p in main.params:
        assert isinstance(p, Buffer)
        places[p] = p.replace(scope="arena")
        offsets.append((places[p], end))
        end += -(-_nbytes(p) // ALIGN) * ALIGN
    body = _statement(substitute(body, dict(places)))
    given = [p for p in main.params if isinstance(p, Buffer)]
    if target.binds and end > target.max_binding:
        raise UserError("device-memory", f"the activations of this model take {end >> 20} MiB; {target.name} binds "
                        f"{target.max_binding >> 20} MiB at once", hint="use a smaller batch, or choose another target")
    checks = [_fits_words(p, target) for p in given[:inputs] if target.binds and p.dtype.is_int and p.dtype.bits > 32]
    before = [*checks, *[_copy("tw_upload", places[p], p) for p in given[:inputs]]]
    after = [_copy("tw_download", p, places[p]) for p in given[inputs:]]
    if _is_straight(body):
        captured = Evaluate(Call("tw_captured", (), i64))
        body = If(Call("tw_replay", (), i64).eq(0), seq(body, captured), None)
    body = seq(*before, body, *after)
    for b, offset in reversed(offsets):
        body = Allocate(b, body, const(offset))
    return main.replace(body=body), end


def _is_straight(s: Stmt) -> bool:
    """Whether a statement does the same in every run, and on the device alone."""
    match s:
        case Seq(stmts):
            return all(_is_straight(t) for t in stmts)
        case Allocate():
            return _is_straight(s.body)
        case Launch():
            return True
        case Evaluate(Call(name)):
            return name in ("tw_move", "tw_profile_begin", "tw_profile_end", "tw_tap")
    return False


def _require_constant(main: Program) -> None:
    calls = {n.name for n in walk(main.body) if isinstance(n, Call)}
    launches = {n.callee for n in walk(main.body) if isinstance(n, Launch)}
    sizes = [p.name for p in main.params if isinstance(p, Var)]
    if sizes or calls & {"tw_grow", "tw_grow_kept", "tw_output"}:
        raise UserError("device-sizes", "sizes of this model are known only when it runs, which devices do not do yet",
                        where=", ".join(sizes), hint="set the sizes of the inputs (shapes={…}, --shape NAME=N), or compile "
                        "for the CPU")
    if HOST_CALL in launches:
        raise UserError("device-sizes", "operators of this model call back into Python, which devices do not do yet",
                        hint="replace them, or compile for the CPU")


def _fits_words(b: Buffer, target: Target) -> Stmt:
    """Fails the run if an element of an input is beyond 32 bits."""
    at = [Var(f"i{k}") for k in range(b.rank)]
    value = b[tuple(at)]
    low, high = (-2**31, 2**31 - 1) if b.dtype.kind == "int" else (0, 2**32 - 1)
    fits = (value <= high) if low == 0 else (value >= low) & (value <= high)
    message = f"{b.name.removeprefix('in_')} holds {{}}, and kernels for {target.name} compute in 32 bits"
    check: Stmt = Assert(fits, ERROR_VALUE, message, (value.cast(i64),))
    for v, n in zip(reversed(at), reversed(b.shape), strict=True):
        check = For(v, ZERO, n, check)
    return check


def _statement(s: Stmt) -> Stmt:
    """A statement with the copies that it needs."""
    match s:
        case Seq(stmts):
            return seq([_statement(t) for t in stmts])
        case Evaluate(Call("copy_bytes", args, t)):
            return s.replace(value=Call("tw_move", args, t))
        case Store():
            return seq(_reads(s.value), s, _copy("tw_upload", s.buffer, s.buffer) if s.buffer.scope == "arena" else None)
        case If():
            otherwise = None if s.otherwise is None else _statement(s.otherwise)
            return seq(_reads(s.cond), s.replace(then=_statement(s.then), otherwise=otherwise))
        case While():
            reads = _reads(s.cond)
            return seq(reads, s.replace(body=seq(_statement(s.body), reads)))
        case For():
            return seq(_reads(s.extent), s.replace(body=_statement(s.body)))
        case Let():
            return seq(_reads(s.value), s.replace(body=_statement(s.body)))
        case Allocate():
            return s.replace(body=_statement(s.body))
        case Assert() | Evaluate() | Launch():
            return seq(*[r for n in s.children() if isinstance(n, Expr) for r in _reads(n)], s)
    return s


def _reads(e: Node) -> list[Stmt]:
    """What brings the values that the host reads in an expression to the host."""
    found = dict.fromkeys(n.buffer for n in walk(e) if isinstance(n, Load) and n.buffer.scope == "arena")
    return [_copy("tw_download", b, b) for b in found]


def _copy(name: str, to: Buffer, source: Buffer) -> Stmt:
    return Evaluate(Call(name, (_start(to), _start(source), const(_nbytes(to))), i64))


def _start(b: Buffer) -> Address:
    return Address(b, (ZERO,) * b.rank)


def _nbytes(b: Buffer) -> int:
    n = b.dtype.nbytes
    for d in b.shape:
        n *= as_int(d) or 0
    return n
