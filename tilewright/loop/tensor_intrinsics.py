"""Tensor intrinsics as values: what an instruction over tiles means, and how each code generator writes it.

    DOT = tensor_intrinsic('''
        program dot(c: i32[16], a: u8[4], b: i8[16, 4] strides[4, 1]):
            for i in 0..16:
                for k in 0..4:
                    c[i] = c[i] + i32(a[k]) * i32(b[i, k])
    ''', emit={"llvm": "…", "c": "dot($c, $a, $b);"})

The program is the meaning: `tensorize` proves that a nest does just that, and the interpreter runs it. Its parameters are
the operands, tiles of constant shape. An operand of scope "global" may lie in any memory that a thread can address, at
any strides unless it says some ("strides[4, 1]"; 0 is any); another scope is asked for as it is. An operand of scope "warp"
is held by the threads of a warp together: its `Fragment` says which of them has which element.

A template of `emit` is text in the language of its code generator ("llvm", or the name of a C-like language). In it `$c` is
the address of the first element of operand c's tile and `$c.0` the stride along its dimension 0, in elements; of an
operand in a warp `$c` is the address of the thread's own part, and `$lane` is the thread's number in the warp. Of LLVM,
values are `%names` of the template's own, and lines that begin with "declare" go to the module. It must be one
instruction or a fixed sequence of them.

A chip maker's instruction needs no change here: it is declared where it is used.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from textwrap import dedent
from typing import Any

from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import alpha_equal, walk
from tilewright.loop.ir import Block, Buffer, For, Load, Program, Store, Var, as_int
from tilewright.loop.parser import parse_program

KEY = "intrinsic"
"""The attribute of a block that stands for a tensor intrinsic: its name."""


@dataclass(frozen=True)
class Fragment:
    """How the threads of a warp hold a matrix (or vector) of `shape`: element (i, j) is in the registers of thread
    `lane(i, j)`, there number `register(i, j)`. Fragments are told apart by their names."""

    name: str
    shape: tuple[int, ...]
    lane: Callable[..., Any] = field(compare=False)
    register: Callable[..., Any] = field(compare=False)

    def registers(self, threads: int) -> int:
        """Elements that each thread holds."""
        return prod(self.shape) // threads


@dataclass(frozen=True)
class TensorIntrinsic:
    """An instruction that computes a tile: see this file's head.

    `threads`: how many neighbours along threadIdx.x run it together (a warp's instruction: 32). `requires`: what a target
    must have (`Target.has`), "" if any target with a template will do. `fragments`: how operands of scope "warp" are held.
    `aligned`: operands whose rows begin at multiples of so many elements. `rounds`: the type to which it rounds operands,
    although its program does not; `tensorize` wants that allowed. `asynchronous`: what it writes may arrive as late as at
    the next barrier."""

    name: str
    body: Program
    emit: Mapping[str, str]
    threads: int = 1
    requires: str = ""
    fragments: Mapping[str, Fragment] = field(default_factory=dict)
    aligned: Mapping[str, int] = field(default_factory=dict)
    rounds: str = ""
    asynchronous: bool = False

    @property
    def operands(self) -> tuple[Buffer, ...]:
        return tuple([p for p in self.body.params if isinstance(p, Buffer)])

    def __repr__(self) -> str:
        return repr(self.name)

    def __hash__(self) -> int:
        return hash(self.name)


_KNOWN: dict[str, TensorIntrinsic] = {}


def tensor_intrinsic(body: str | Program, emit: Mapping[str, str], **facts: Any) -> TensorIntrinsic:
    """Declare an intrinsic, by the name of its program (text of the loop IR, or a Program without blocks); `facts` are the
    other fields of TensorIntrinsic.

    Raises UserError "intrinsic-declaration" for a program that is no nest over tiles of constant shape with plain indices,
    and for another one of the same name.
    """
    program = parse_program(dedent(body).strip() + "\n") if isinstance(body, str) else body
    _check_body(program)
    made = TensorIntrinsic(program.name, program, dict(emit), **facts)
    for p in made.operands:
        if (p.scope == "warp") != (p.name in made.fragments):
            raise UserError("intrinsic-declaration", f"tensor intrinsic {made.name}: operands of scope warp, and no others, "
                            f"have fragments; {p.name} is not so")
    known = _KNOWN.setdefault(made.name, made)
    if known is not made and not (alpha_equal(known.body, made.body) and replace(made, body=known.body) == known):
        raise UserError("intrinsic-declaration", f"there is another tensor intrinsic called {made.name}",
                        hint="give it a name of its own: programs refer to intrinsics by name")
    return known


def tensor_intrinsic_named(name: str) -> TensorIntrinsic:
    """A declared intrinsic. Raises InternalError if there is none of that name."""
    if name not in _KNOWN:
        raise InternalError(f"there is no tensor intrinsic {name!r}; declared: {', '.join(sorted(_KNOWN)) or 'none'}")
    return _KNOWN[name]


def _check_body(p: Program) -> None:
    def wrong(what: str) -> UserError:
        return UserError("intrinsic-declaration", f"tensor intrinsic {p.name}: {what}", where=str(p),
                         hint="an operand is a buffer of constant shape, indexed by loop variables; loops are constant")

    loops = {n.var for n in walk(p.body) if isinstance(n, For)}
    for q in p.params:
        if not isinstance(q, Buffer) or any(as_int(d) is None for d in q.shape):
            raise wrong(f"the operand {q.name} is no buffer of constant shape")
        if q.strides is not None and any(as_int(s) is None for s in q.strides):
            raise wrong(f"the strides of {q.name} are no constants (leave them out if any will do)")
    for n in walk(p.body):
        if isinstance(n, Block) or isinstance(n, For) and (as_int(n.start) != 0 or as_int(n.extent) is None):
            raise wrong("a block, or a loop without a constant extent from 0")
        if isinstance(n, Load | Store):
            if n.buffer not in p.params:
                raise wrong(f"{n.buffer.name} is no operand")
            used = [i for i in n.indices if as_int(i) != 0]
            if not all(isinstance(i, Var) and i in loops for i in used) or len(set(used)) != len(used):
                raise wrong(f"the index of {n!r} is no loop variable by itself")


# ---- templates -------------------------------------------------------------------------------------------------------
_WORD = re.compile(r"\$([A-Za-z_]\w*)(?:\.(\d+))?")


def fill(template: str, words: Mapping[str, Callable[[int | None], str]]) -> str:
    """A template with `$name` and `$name.dimension` replaced; other dollars stay (those of LLVM's inline assembly)."""
    def word(m: re.Match[str]) -> str:
        found = words.get(m.group(1))
        if found is None:
            return m.group(0)
        return found(None if m.group(2) is None else int(m.group(2)))

    return _WORD.sub(word, template)


def template_for(intrinsic: TensorIntrinsic, generators: Iterable[str]) -> str:
    """The template for the first of some code generators that has one. Raises UserError "intrinsic-target"."""
    wanted = list(generators)
    for name in wanted:
        if name in intrinsic.emit:
            return intrinsic.emit[name]
    raise UserError("intrinsic-target", f"the tensor intrinsic {intrinsic.name} has no code for {wanted[0]}",
                    hint=f"it has for: {', '.join(intrinsic.emit) or 'nothing'}; give `emit` a template, or choose another "
                    "target")
