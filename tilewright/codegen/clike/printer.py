"""Kernels as text in a C-like language: one printer for all, which asks a `Language` for every word.

In: lowered kernels (`loop/lower/device_pipeline.py`): loops serial or bound to blocks and threads, vectors only as copies.
Out: the source of one module. A bound loop becomes a variable; for plain C it stays a loop, so that a kernel without
barriers is a function that runs on the CPU. Integers are printed in their own types; a loop variable is a 32-bit int where
it surely fits, widened where it meets 64-bit data.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from tilewright.codegen.clike.language import HELPERS, Language
from tilewright.codegen.clike.tensor_calls import held_buffers, tensor_text
from tilewright.core.dtype import DType, f32, i32
from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import walk
from tilewright.loop import ir
from tilewright.loop.bounds import bounds
from tilewright.loop.externs import externs_of, refuse_on_device
from tilewright.loop.lower.linear import flat_position, interval, linear, plus, scaled
from tilewright.loop.simplify import simplify

_INFIX: dict[type, tuple[str, int]] = {
    ir.Or: ("||", 1), ir.And: ("&&", 2), ir.Eq: ("==", 6), ir.Ne: ("!=", 6), ir.Lt: ("<", 7), ir.Le: ("<=", 7),
    ir.Add: ("+", 9), ir.Sub: ("-", 9), ir.Mul: ("*", 10), ir.Div: ("/", 10)}
_BITS = {"bit_and": "&", "bit_or": "|", "bit_xor": "^", "shift_left": "<<", "shift_right": ">>"}
_RESERVED = frozenset((
    "kernel", "global", "local", "constant", "private", "half", "float", "double", "int", "long", "short", "char", "uint",
    "ulong", "uchar", "ushort", "if", "else", "for", "while", "do", "switch", "case", "return", "void", "const", "static",
    "inline", "restrict", "auto", "register", "signed", "unsigned", "default", "goto", "break", "continue", "union", "enum",
    "struct", "typedef", "volatile", "extern", "sizeof", "bool", "true", "false", "in", "out", "this", "new", "class",
    "device", "thread", "threadgroup", "vertex", "fragment", "metal", "tw_block", "tw_thread"))
TERNARY, UNARY, ATOM = 0, 11, 12
FEW_REGISTERS, OTHER_REGISTERS, MOST_BLOCKS = 64, 48, 16
"""What any thread may have, what one with sums of its own needs beside them (compilers that are left alone spill some, to
run more threads), and the blocks that any multiprocessor holds."""


def print_kernels(kernels: Iterable[ir.Program], language: Language) -> str:
    """The functions of some kernels, their helpers and tables first; texts may follow each other in one module, which opens
    with `language.prelude`. Where the language wants a module for each kernel, the texts are those.

    Raises UserError "device-dtype" for an element type that the language does not have."""
    parts: list[str] = []
    helpers: dict[str, str] = {}
    for p in kernels:
        if language.is_separate:
            helpers = {}
        text = _Kernel(p, language, helpers).function()
        if language.is_separate:
            opening = language.opening.format(name=p.name, arguments=p.attr("arguments"))
            text = "\n".join([opening, *helpers.values(), text])
        parts.append(text)
    return "\n".join(parts if language.is_separate else [*helpers.values(), *parts])


def _words(language: Language) -> frozenset[str]:
    """The names that a language's own templates use: a buffer called "tanh" would hide the function."""
    texts = (*language.functions.values(), *language.double.values(), *language.index.values(), *language.types.values(),
             language.barrier, language.wide, language.infinity, language.nan)
    return frozenset(re.findall(r"[A-Za-z_]\w*", " ".join(texts)))


class _Kernel:
    """One kernel being printed."""

    def __init__(self, p: ir.Program, language: Language, helpers: dict[str, str]) -> None:
        self.p, self.language, self.helpers = p, language, helpers
        self.names: dict[Any, str] = {}
        self.used: set[str] = {*_RESERVED, *language.reserved, *_words(language), *[f.symbol for f in externs_of([p])]}
        self.ranges: dict[ir.Var, Any] = {}
        self.narrow: set[ir.Var] = set()
        self.lines: list[str] = []
        self.threads: dict[str, int] = {}
        self.private = 0
        self.copied = sum(n.value.dtype.lanes for n in walk(p.body) if isinstance(n, ir.Store) and n.buffer.scope == "shared"
                          and any(isinstance(v, ir.Load) and v.buffer.scope == "global" for v in walk(n.value)))
        self.outside: list[str] = []
        self.atomic = {n.args[0].buffer for n in walk(p.body)  # type: ignore[attr-defined]
                       if isinstance(n, ir.Call) and n.name == "put_bits"}
        self.written = {n.buffer for n in walk(p.body) if isinstance(n, ir.Store)} | self.atomic
        self.held = held_buffers(p)
        self.lane: ir.Var | None = None

    # ---- names and types -----------------------------------------------------------------------------------------------
    def name(self, n: Any) -> str:
        if n not in self.names:
            if isinstance(n, ir.Buffer) and n.data is not None:
                self.names[n] = self.table(n)
                return self.names[n]
            wish = re.sub(r"\W", "_", n.name) or "v"
            wish = wish if wish[0].isalpha() else f"v{wish}"
            name, k = wish, 0
            while name in self.used:
                k += 1
                name = f"{wish}_{k}"
            self.used.add(name)
            self.names[n] = name
        return self.names[n]

    def type(self, t: DType) -> str:
        if t.name not in self.language.types:
            raise UserError("device-dtype", f"kernels in {self.language.name} cannot work with elements {t}",
                            where=self.p.name, hint="cast such values in the model, or choose another target")
        return self.language.types[t.name]

    def table(self, b: ir.Buffer) -> str:
        """A table of constants, defined once in the module's text by its content."""
        assert b.data is not None
        values = ", ".join([self.literal(b.dtype, v) for v in b.data])
        name = f"{self.p.name}_table{len(self.helpers)}"
        self.helpers[name] = self.language.table.format(type=self.type(b.dtype), name=name, n=max(1, len(b.data)),
                                                        values=values)
        return name

    # ---- the function --------------------------------------------------------------------------------------------------
    def function(self) -> str:
        params: list[str] = []
        begin: list[str] = []
        buffers = [q for q in self.p.params if isinstance(q, ir.Buffer)]
        for at, b in enumerate(buffers):
            words = {"type": self.type(b.dtype), "name": self.name(b), "const": "" if b in self.written else "const ",
                     "at": at, "access": "read_write" if b in self.written else "read"}
            if b in self.atomic:
                words["type"] = self.language.atomic["type"].format(words["type"])
            params.append(self.language.buffer.format(**words))
            begin.append(self.language.begin.format(**words))
            self.outside.append(self.language.declare.format(**words))
        for at, q in enumerate([q for q in self.p.params if isinstance(q, ir.Var)]):
            words = {"type": self.type(q.dtype), "name": self.name(q), "at": len(buffers) + at, "row": at // 4,
                     "column": at % 4}
            params.append(self.language.number.format(**words))
            begin.append(self.language.begin_number.format(**words))
        params = [text for text in (*params, *self.language.extra) if text]
        self.lines += [f"  {line}" for line in begin if line]
        self.stmt(self.p.body, 1)
        x, y, z = (self.threads.get(f"threadIdx.{a}", 1) for a in "xyz")
        head = self.language.kernel.format(name=self.p.name, params=", ".join(params), x=x, y=y, z=z, threads=x * y * z,
                                           blocks=self.blocks(x * y * z))
        outside = "".join([f"{line}\n" for line in self.outside if line])
        return f"{outside}{head} {{\n" + "\n".join(self.lines) + "\n}\n"

    def blocks(self, threads: int) -> int:
        """Blocks that fit a multiprocessor if each private word, an operand for it, each word on its way to shared memory,
        and what a simple kernel needs have registers."""
        registers = max(FEW_REGISTERS, 2 * self.private + self.copied + OTHER_REGISTERS)
        return max(1, min(self.language.registers // (threads * registers), MOST_BLOCKS))

    def line(self, depth: int, text: str) -> None:
        self.lines.append("  " * depth + text)

    def stmt(self, s: ir.Stmt, depth: int) -> None:
        match s:
            case ir.Seq(stmts):
                for t in stmts:
                    self.stmt(t, depth)
            case ir.Store():
                self.store(s, depth)
            case ir.Evaluate(ir.Call("barrier")):
                if not self.language.barrier:
                    raise InternalError(f"{self.language.name} has no threads that could wait for each other")
                self.line(depth, self.language.barrier)
            case ir.Evaluate(ir.Call("put_bits", (ir.Address() as place, mask, bits))):
                put = self.language.atomic["put"]
                self.line(depth, put.format(self.place(place), self.expr(mask, ATOM), self.expr(bits)))
            case ir.Evaluate(ir.Call("wait_copies", (newest,))):
                self.line(depth, self.language.wait_group.format(n=n) if (n := ir.as_int(newest)) else self.language.wait)
            case ir.Evaluate(ir.Call("commit_copies")):
                self.line(depth, self.language.commit)
            case ir.Evaluate(ir.Call("prefetch")):
                pass  # a hint: threads that wait for memory make room for others
            case ir.TensorCall():
                self.line(depth, "{")
                for line in tensor_text(s, self.language.name, self.language.index.get("threadIdx.x", "0"), self.address,
                                        lambda e: self.expr(e, ATOM)):
                    self.line(depth + 1, line)
                self.line(depth, "}")
            case ir.ExternCall():
                self.extern_call(s, depth)
            case ir.For():
                self.loop(s, depth)
            case ir.If(cond, then, otherwise):
                self.block(depth, f"if ({self.expr(cond)})", then)
                if otherwise is not None:
                    self.block(depth, "else", otherwise)
            case ir.While(cond, body):
                self.block(depth, f"while ({self.expr(cond)})", body)
            case ir.Let(var, value, body):
                self.learn(var, value)
                self.line(depth, self.language.define.format(type=self.variable_type(var), name=self.name(var),
                                                             value=self.expr(value)))
                self.stmt(body, depth)
            case ir.Allocate(buffer, body):
                self.allocate(buffer, depth)
                self.stmt(body, depth)
            case _:
                raise InternalError(f"no {self.language.name} for the statement {type(s).__name__}: a pass is missing")

    def extern_call(self, s: ir.ExternCall, depth: int) -> None:
        """A call, and before the kernels the function's declaration."""
        if self.language.index:
            refuse_on_device([s], self.language.name)
        stored = {n.buffer for n in walk(s.body) if isinstance(n, ir.Store)}
        types = [f"{'' if a.buffer in stored else 'const '}{self.type(a.dtype)} *" if isinstance(a, ir.Load)
                 else self.type(a.dtype) for a in s.args]
        self.helpers.setdefault(s.symbol, f"{'int' if s.status else 'void'} {s.symbol}({', '.join(types)});")
        args = [self.address(a) if isinstance(a, ir.Load) else self.expr(a) for a in s.args]
        text = f"{s.symbol}({', '.join(args)})"
        self.line(depth, f"if ({text}) return;" if s.status else f"{text};")

    def block(self, depth: int, head: str, body: ir.Stmt) -> None:
        self.line(depth, head + " {")
        self.stmt(body, depth + 1)
        self.line(depth, "}")

    def variable_type(self, v: ir.Var) -> str:
        return self.type(i32) if v in self.narrow else self.type(v.dtype)

    def learn(self, v: ir.Var, value: ir.Expr) -> None:
        """What is known of a definition's values."""
        if v.dtype.kind == "int" and v.dtype.lanes == 1:
            lo, hi = bounds(value, self.ranges)
            if isinstance(lo, int) and isinstance(hi, int):
                self.ranges[v] = (lo, hi)

    def loop(self, s: ir.For, depth: int) -> None:
        first, last = interval(s.start, self.ranges), interval(s.start + s.extent - 1, self.ranges)
        if first is not None and last is not None:
            self.ranges[s.var] = (first[0], max(first[0], last[1]))
            if s.var.dtype.bits == 64 and -2**31 <= first[0] and last[1] < 2**31 - 1:
                self.narrow.add(s.var)
        t, v = self.variable_type(s.var), self.name(s.var)
        axis = self.language.index.get(s.kind)
        if axis is not None:
            if s.kind == "threadIdx.x":
                self.lane = s.var
            if s.kind.startswith("threadIdx"):
                self.threads[s.kind] = ir.as_int(s.extent) or 1
            self.line(depth, self.language.define.format(type=t, name=v, value=axis))
            self.stmt(s.body, depth)
            return
        if s.kind not in ("serial", "unrolled") and self.language.index:
            raise InternalError(f"a {s.kind} loop over {s.var.name} reached the printer")
        end = self.expr(s.start + s.extent)
        self.block(depth, self.language.loop.format(type=t, name=v, start=self.expr(s.start), end=end), s.body)

    def allocate(self, b: ir.Buffer, depth: int) -> None:
        if b.data is not None:
            return
        size = 1
        for n, step in zip(b.shape, b.strides or (None,) * b.rank, strict=True):
            k = ir.as_int(n)
            if k is None:
                raise InternalError(f"the {b.scope} buffer {b.name} has no constant size")
            size = size * k if step is None else size + (k - 1) * (ir.as_int(step) or 0)
        if b.scope == "warp":
            if not self.language.warp or b not in self.held:
                raise UserError("kernel-warp", f"no tensor intrinsic for {self.language.name} says how the threads of a "
                                f"warp hold {b.name}", where=self.p.name, hint="tensorize the blocks that write and read it")
            size = self.held[b].size(b)
        self.private += size * b.dtype.nbytes // 4 if b.scope in ("local", "warp") else 0
        template = {"shared": self.language.shared, "warp": self.language.warp}.get(b.scope, self.language.local)
        text = template.format(type=self.type(b.dtype), name=self.name(b), n=max(1, size))
        if b.scope == "shared" and self.language.shared_outside:
            self.outside.append(text)
        else:
            self.line(depth, text)

    # ---- memory --------------------------------------------------------------------------------------------------------
    def position(self, n: Any) -> ir.Expr:
        """The element of the buffer's memory that an access means."""
        return simplify(flat_position(n), self.ranges)

    def place(self, n: Any) -> str:
        return f"{self.name(n.buffer)}[{self.expr(self.position(n))}]"

    def address(self, n: ir.Load) -> str:
        """Of the first element of a tile; in a warp, of what this thread has of it."""
        at = self.held[n.buffer].first(n.buffer, n.indices) if n.buffer in self.held else self.position(n)
        if at is None:
            raise UserError("kernel-warp", f"a tile begins between two fragments of {n.buffer.name}", where=repr(n))
        return f"({self.name(n.buffer)} + {self.expr(at, 10)})"

    def own_element(self, n: Any) -> str:
        """An element of a warp's buffer that this thread has itself."""
        lane, place = self.held[n.buffer].element(n.buffer, n.indices)
        if self.lane is None or simplify(lane - self.lane, self.ranges) != ir.ZERO:
            raise UserError("kernel-warp", f"another thread of the warp may hold {n!r}", where=self.p.name,
                            hint="bind the loops to threadIdx.x so that each thread reads its own elements of the fragment, "
                            "or store it by a tensor intrinsic")
        return f"{self.name(n.buffer)}[{self.expr(simplify(place, self.ranges))}]"

    def element(self, n: Any) -> str:
        if n.buffer in self.held:
            return self.own_element(n)
        return self.language.atomic["load"].format(self.place(n)) if n.buffer in self.atomic else self.place(n)

    def store(self, s: ir.Store, depth: int) -> None:
        lanes = s.value.dtype.lanes
        if lanes == 1:
            template = self.language.atomic["store"] if s.buffer in self.atomic else "{0} = {1};"
            self.line(depth, template.format(self.place(s), self.expr(s.value)))
            return
        if not isinstance(s.value, ir.Load):
            raise InternalError(f"a vector that is no copy reached the printer: {s!r}")
        to, source = self.position(s), self.position(s.value)
        if self.language.wide and s.buffer.scope != "local" and s.value.buffer.scope != "local" and all(
                self.dense(at) for at in (to, source)):
            at = [f"({self.name(b)} + {self.expr(lane(e, 0), 10)})" for b, e in ((s.buffer, to), (s.value.buffer, source))]
            self.line(depth, self.language.wide.format(
                n=lanes, type=self.type(s.buffer.dtype), to=at[0], source=at[1],
                vector=self.language.vectors.get(s.buffer.dtype.name, self.type(s.buffer.dtype))))
            return
        for k in range(lanes):
            self.line(depth, f"{self.name(s.buffer)}[{self.expr(lane(to, k))}] = "
                      f"{self.name(s.value.buffer)}[{self.expr(lane(source, k))}];")

    def dense(self, at: ir.Expr) -> bool:
        """Whether a vector of positions is a run that begins at a multiple of its length."""
        n = at.dtype.lanes
        first, second = linear(lane(at, 0)), linear(lane(at, 1))
        return (second[0] == first[0] and second[1] - first[1] == 1 and first[1] % n == 0
                and all(c % n == 0 for c in first[0].values()))

    # ---- expressions ---------------------------------------------------------------------------------------------------
    def expr(self, e: ir.Expr, level: int = TERNARY) -> str:
        """An expression, in parentheses if it binds less than `level`."""
        text, own = self.term(e)
        return f"({text})" if own < level else text

    def term(self, e: ir.Expr) -> tuple[str, int]:
        match e:
            case ir.Const(value, t):
                text = self.literal(t, value)
                return text, UNARY if text.startswith("-") else ATOM
            case ir.Var():
                return self.name(e), ATOM
            case ir.Load():
                return self.element(e), ATOM
            case ir.FloorDiv() | ir.FloorMod():
                return self.floor(e)
            case ir.Min() | ir.Max():
                return self.helper("min" if isinstance(e, ir.Min) else "max", e.dtype, [e.a, e.b]), ATOM
            case ir.Not(a):
                return f"!{self.expr(a, UNARY)}", UNARY
            case ir.Select(cond, a, b) | ir.Guard(cond, a, b):
                is_call = self.language.select.endswith(")")  # then nothing inside needs parentheses
                text = self.language.select.format(cond=self.expr(cond, 0 if is_call else 1), b=self.expr(b, TERNARY),
                                                   a=self.expr(a, 0 if is_call else 1))
                return text, ATOM if is_call else TERNARY
            case ir.Cast(t, a):
                return self.cast(t, a), UNARY
            case ir.Call():
                return self.call(e)
            case ir.Ne(a, b) if a.dtype.is_float and self.language.unequal:
                return self.language.unequal.format(self.expr(a, 8), self.expr(b, 8)), UNARY
            case ir.Binary():
                word, level = _INFIX[type(e)]
                inner = 3 if isinstance(e, ir.And | ir.Or) else 8 if isinstance(e, ir.Compare) else level
                if self.fits(e):
                    left = self.expr(e.a, level if type(e.a) is type(e) else inner)
                else:
                    left = self.as_type(self.type(e.dtype), e.a)
                text = f"{left} {word} {self.expr(e.b, max(inner, level + 1))}"
                return (f"{self.type(e.dtype)}({text})", ATOM) if _is_short(e.dtype) else (text, level)
        raise InternalError(f"no {self.language.name} for the expression {e!r}: a lowering pass is missing")

    def cast(self, t: DType, a: ir.Expr) -> str:
        if t.is_bool:
            return f"({self.expr(a, 8)} != {self.literal(a.dtype, 0)})"
        return self.as_type(self.type(t), a)

    def as_type(self, name: str, a: ir.Expr) -> str:
        return self.language.cast.format(self.expr(a, UNARY), type=name)

    def fits(self, e: ir.Binary) -> bool:
        """Whether an operation of 64-bit integers gives what it should in the type that C gives to its operands."""
        if not isinstance(e, ir.Add | ir.Sub | ir.Mul) or e.dtype.bits < 64 or not e.dtype.is_int:
            return True
        return self.is_wide(e.a) or self.is_wide(e.b) or not self.overflows(e)

    def overflows(self, e: ir.Expr) -> bool:
        """Whether a value may lie beyond 32 bits."""
        lo, hi = bounds(e, self.ranges)
        return not (isinstance(lo, int) and isinstance(hi, int) and -2**31 <= lo and hi < 2**31)

    def is_wide(self, e: ir.Expr) -> bool:
        """Whether C computes a 64-bit integer expression in 64 bits: some operand is not an int there."""
        match e:
            case ir.Const(value):
                return not -2**31 < value < 2**31
            case ir.Var():
                return e not in self.narrow
            case ir.Select(_, a, b) | ir.Guard(_, a, b):
                return self.is_wide(a) or self.is_wide(b)
            case ir.Add() | ir.Sub() | ir.Mul():
                return self.is_wide(e.a) or self.is_wide(e.b) or self.overflows(e)
            case ir.FloorDiv() | ir.FloorMod() | ir.Div():
                return self.is_wide(e.a) or self.is_wide(e.b)
        return True

    def floor(self, e: Any) -> tuple[str, int]:
        """Division that rounds down: C's own where the dividend cannot be negative."""
        low, _ = bounds(e.a, self.ranges)
        divisor = ir.as_int(e.b)
        if e.dtype.kind == "uint" or isinstance(low, int) and low >= 0 and divisor is not None and divisor > 0:
            word = "/" if isinstance(e, ir.FloorDiv) else "%"
            return f"{self.expr(e.a, 10)} {word} {self.expr(e.b, 11)}", 10
        return self.helper("floordiv" if isinstance(e, ir.FloorDiv) else "floormod", e.dtype, [e.a, e.b]), ATOM

    def helper(self, name: str, t: DType, args: list[ir.Expr]) -> str:
        source = args[0].dtype
        full = f"tw_{name}_{t.name}" if source is t else f"tw_{name}_{source.name}_{t.name}"
        if full not in self.helpers:
            c, a = self.type(t), self.type(source)
            params = ", ".join([self.language.param.format(type=a, name=v) for v in "ab"[:len(args)]])
            head = self.language.helper.format(type=c, name=full, params=params)
            bodies = {**HELPERS, **self.language.helpers}
            body = bodies.get(f"{name}_{t.name}", bodies[name]).format(i=c, a=a)
            text = f"{head} {{ {body} }}\n"
            self.helpers[full] = text if self.language.is_separate else f"#ifndef {full}_\n#define {full}_\n{text}#endif\n"
        return f"{full}({', '.join([self.expr(a) for a in args])})"

    def call(self, e: ir.Call) -> tuple[str, int]:
        t = e.args[0].dtype
        if e.name == "neg" and _is_short(t):
            return f"{self.type(t)}(-{self.expr(e.args[0], ATOM)})", ATOM
        if e.name == "neg":
            return f"-{self.expr(e.args[0], ATOM)}", UNARY
        if e.name == "sign":
            return self.helper("sign", t, [e.args[0]]), ATOM
        if e.name == "reinterpret":
            if not self.language.reinterpret:
                return self.helper("reinterpret", e.dtype, [e.args[0]]), ATOM
            return self.language.reinterpret.format(self.expr(e.args[0]), type=self.type(e.dtype)), ATOM
        if e.name in _BITS:
            template = self.language.shift if e.name.startswith("shift") else "{0} {1} {2}"
            return f"({template.format(self.expr(e.args[0], ATOM), _BITS[e.name], self.expr(e.args[1], ATOM))})", ATOM
        if e.name == "bit_not":
            return self.language.cast.format(f"~{self.expr(e.args[0], ATOM)}", type=self.type(t)), UNARY
        if t.is_int and e.name == "abs":
            return (self.expr(e.args[0], ATOM) if t.kind == "uint" else self.helper("abs", t, [e.args[0]])), ATOM
        if t.is_int and e.name == "fmod":
            return f"{self.expr(e.args[0], 10)} % {self.expr(e.args[1], 11)}", 10
        if _is_short(t) and e.type.is_float:  # computed in f32 and rounded
            wide = ir.Call(e.name, tuple([ir.Cast(f32, a) for a in e.args]), f32)
            return f"{self.type(t)}({self.expr(wide)})", ATOM
        if _is_short(t):
            return self.call(e.replace(args=tuple([ir.Cast(f32, a) for a in e.args])))
        if t is f32 and e.name in self.language.helpers:
            return self.helper(e.name, t, list(e.args)), ATOM
        table = self.language.functions if t is f32 else self.language.double
        if not t.is_float or e.name not in table:
            raise UserError("device-function", f"kernels in {self.language.name} have no {e.name} of {t}", where=self.p.name,
                            hint="choose another target for this model")
        return table[e.name].format(*[self.expr(a, TERNARY) if "," in table[e.name] or table[e.name].startswith(e.name)
                                      else self.expr(a, ATOM) for a in e.args]), ATOM

    def literal(self, t: DType, value: Any) -> str:
        if t.is_bool:
            return self.language.truth[bool(value)]
        if _is_short(t):
            return f"{self.type(t)}({self.literal(f32, value)})"
        if t.is_float:
            v = float(value)
            if math.isnan(v):
                return self.language.nan
            if math.isinf(v):
                return self.language.infinity if v > 0 else f"-{self.language.infinity}"
            return repr(v) + self.language.suffix.get(t.name, "")
        v = int(value)
        if t.name == "i64" and -2**31 < v < 2**31:
            return str(v)
        if t.kind == "int" and v == -2**(t.bits - 1) and t.bits >= 32:  # a literal has no sign of its own
            return f"(-{-v - 1}{self.language.suffix['i64'] if t.bits == 64 else ''} - 1)"
        suffix = self.language.suffix
        return str(v) + (suffix.get(t.name, suffix.get("i64", "")) if t.bits == 64 else "u" if t.name == "u32" else "")


def _is_short(t: DType) -> bool:
    """Whether values of a type are computed in f32 and rounded: a class of the language's prelude does the conversions."""
    return t.is_float and t.bits == 16


def lane(e: ir.Expr, k: int) -> ir.Expr:
    """Lane `k` of an integer expression that may be a vector."""
    if e.dtype.lanes == 1:
        return e
    match e:
        case ir.Ramp(base, stride, _):
            return plus(base, scaled(stride, ir.const(k, stride)))
        case ir.Broadcast(a, _):
            return a
        case ir.Binary() | ir.Cast():
            if isinstance(e, ir.Cast):
                return ir.Cast(e.type.element, lane(e.a, k))
            return type(e)(lane(e.a, k), lane(e.b, k))
    raise InternalError(f"an index {e!r} reached the printer")
