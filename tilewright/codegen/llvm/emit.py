"""LLVM code generation, statements and programs: a lowered loop-IR Module becomes the text of one LLVM module.

In: programs without Blocks whose loops are serial and whose vectors are Ramp and Broadcast. Out: IR text for compile.py.
Every program is `int32_t name(tw_ctx *, params…)` that returns a status; a parallel region is called through a function
that takes its arguments from a closure on its launcher's stack (see runtime/native/tilewright_abi.h).

Attributes of a Program that count here: ("fp", LLVM's fast-math flags, default "contract"), ("noalias", default True),
("aligned", True: buffers are 64-byte aligned), ("internal", True: not visible outside of the object), ("inline", True),
("entry", name) with ("args", one source per parameter: ("in", i), ("out", i) or ("dim", i, axis)): a tw_entry of that
name which unpacks the arrays of pointers and calls the program. Of a For: ("unroll", n).
"""
from __future__ import annotations

from typing import Any

from tilewright.codegen.llvm import address, values
from tilewright.codegen.llvm.function import Function, Memory, ModuleText
from tilewright.codegen.llvm.memory import memory_of, store, table
from tilewright.codegen.llvm.tensor_calls import tensor_call
from tilewright.codegen.llvm.types import memory_scalar, register_type, scalar_type
from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.loop.externs import EXTERN_FAILED
from tilewright.target.target import Target

_BY_VALUE_LIMIT = 64 << 10
"""Bytes of one local buffer: more would overflow the stacks of worker threads."""


def emit(module: ir.Module, target: Target) -> str:
    """The LLVM IR of a module for a target. Raises InternalError for what no lowering should have left."""
    m = ModuleText(target)
    m.defined = {p.name: len(p.params) for p in module.programs}
    m.node('!{!"llvm.loop.unroll.disable"}')
    m.node('!{!"llvm.loop.vectorize.enable", i1 false}')
    m.node('!{!"branch_weights", i32 1, i32 1048575}')
    m.node('!{}')
    regions = {name for p in module.programs for name in _regions(p.body)}
    for p in module.programs:
        m.functions.append(_program(m, p, p.name in regions))
        if p.attr("entry"):
            m.functions.append(_entry(p))
    wide = f' "prefer-vector-width"="{target.vector_bits}" "min-legal-vector-width"="{target.vector_bits}"'
    return "\n".join([
        f'target triple = "{target.triple}"', "", *m.globals, *m.functions, *m.declarations.values(), "",
        f"attributes #0 = {{ nounwind{wide if target.is_x86 else ''} }}",
        "attributes #1 = { nounwind willreturn memory(none) }", "attributes #2 = { cold nounwind }",
        *[f"!{i} = {text}" for i, text in enumerate(m.metadata)], ""])


def _regions(body: ir.Stmt) -> set[str]:
    """Programs launched as parallel regions. Expressions are not entered: as trees they may be exponentially large."""
    found, stack = set(), [body]
    while stack:
        s = stack.pop()
        if isinstance(s, ir.Launch) and s.tasks is not None:
            found.add(s.callee)
        stack.extend([x for x in s.children() if isinstance(x, ir.Stmt)])
    return found


def _parameters(p: ir.Program) -> list[str]:
    """Each parameter with its attributes, without its name."""
    align = 64 if p.attr("aligned", False) else 0
    out = []
    for q in p.params:
        if isinstance(q, ir.Var):
            out.append(memory_scalar(q.dtype))
            continue
        size: int | None = q.dtype.nbytes
        for n in q.shape:
            k = ir.as_int(n)
            size = None if k is None or size is None else size * k
        attrs = "noalias " if p.attr("noalias", True) else ""
        attrs += f"align {max(align, q.dtype.nbytes)}"
        if size and q.strides is None and q.packing == 1:
            attrs += f" dereferenceable({size})"
        out.append(f"ptr {attrs}")
    return out


def _program(m: ModuleText, p: ir.Program, is_region: bool) -> str:
    f = Function(m, p.attr("fp", "contract"), values.value)
    align = 64 if p.attr("aligned", False) else 0
    names = []
    for k, q in enumerate(p.params):
        name = f"%p{k}"
        names.append(name)
        f.depth[name] = 0
        if isinstance(q, ir.Buffer):
            f.memory[q] = Memory(name, max(align, q.dtype.nbytes))
        elif q.dtype.is_bool:
            f.vars[q] = f.op(f"trunc i8 {name} to i1")
        else:
            f.vars[q] = name
    statement(f, p.body)
    f.line("ret i32 0")
    if f.closure_slots:
        f.allocas.append(f"  %closure = alloca [{f.closure_slots} x i64], align 16")
    params = ", ".join(["ptr %ctx", *[f"{t} {n}" for t, n in zip(_parameters(p), names, strict=True)]])
    linkage = "internal " if p.attr("internal", False) else ""
    inline = " noinline" if is_region else " alwaysinline" if p.attr("inline", False) else ""
    body = "\n".join(f.text())
    return f"define {linkage}i32 @{p.name}({params}){inline} #0 {{\nentry:\n{body}\n}}\n"


def _entry(p: ir.Program) -> str:
    """A tw_entry that calls the program: see the file's head."""
    sources = p.attr("args", ())
    if len(sources) != len(p.params):
        raise InternalError(f"{p.name}: {len(sources)} sources for {len(p.params)} parameters")
    lines, args = [], ["ptr %ctx"]
    for k, (q, source) in enumerate(zip(p.params, sources, strict=True)):
        array = "%out" if source[0] == "out" else "%in"
        lines += [f"  %s{k} = getelementptr inbounds ptr, ptr {array}, i64 {source[1]}", f"  %a{k} = load ptr, ptr %s{k}"]
        if source[0] == "dim":
            lines += [f"  %d{k} = getelementptr inbounds i64, ptr %a{k}, i64 {source[2]}",
                      f"  %x{k} = load i64, ptr %d{k}"]
            args.append(f"i64 %x{k}")
        elif isinstance(q, ir.Var):
            lines.append(f"  %x{k} = load {memory_scalar(q.dtype)}, ptr %a{k}")
            args.append(f"{memory_scalar(q.dtype)} %x{k}")
        else:
            args.append(f"ptr %a{k}")
    lines += [f"  %status = call i32 @{p.name}({', '.join(args)})", "  ret i32 %status"]
    return f"define i32 @{p.attr('entry')}(ptr %ctx, ptr %in, ptr %out) #0 {{\n" + "\n".join(lines) + "\n}\n"


# ---- statements ------------------------------------------------------------------------------------------------------
def statement(f: Function, s: ir.Stmt) -> None:
    match s:
        case ir.Seq(stmts):
            for x in stmts:
                statement(f, x)
        case ir.Store():
            f.statement()
            memory_of(f, s.buffer)
            store(f, s)
        case ir.Evaluate(e):
            f.statement()
            f.value(e)
        case ir.For():
            f.statement()
            _loop(f, s)
        case ir.Let():
            f.statement()
            _let(f, s)
        case ir.If():
            f.statement()
            _if(f, s)
        case ir.While():
            f.statement()
            _while(f, s)
        case ir.Allocate():
            f.statement()
            _allocate(f, s)
            statement(f, s.body)
        case ir.Launch():
            f.statement()
            _launch(f, s)
        case ir.Assert():
            f.statement()
            _assert(f, s)
        case ir.TensorCall():
            f.statement()
            tensor_call(f, s)
        case ir.ExternCall():
            f.statement()
            _extern_call(f, s)
        case _:
            raise InternalError(f"no LLVM code for the statement {type(s).__name__}: a lowering pass is missing")
    f.statement()


def _loop(f: Function, s: ir.For) -> None:
    if s.kind not in ("serial", "unrolled"):
        raise InternalError(f"a {s.kind} loop over {s.var.name} reached LLVM code generation")
    t, extent = scalar_type(s.var.dtype), ir.as_int(s.extent)
    if extent is not None and extent <= 0:
        return
    start = f.value(s.start)
    small = start.isdigit() or start in f.nonnegative
    if extent == 1:
        f.vars[s.var] = start
        if s.start.dtype.bits == 64:
            f.affine[s.var] = address.linear(f, s.start)
        statement(f, s.body)
        return
    count = f.value(s.extent)
    end = count if start == "0" else f.pure(f"add {t} {start}, {count}", start, count)
    body, done = f.fresh_label("loop"), f.fresh_label("done")
    if extent is None:
        enter = f.op(f"icmp sgt {t} {count}, 0")
        f.branch(f"br i1 {enter}, label %{body}, label %{done}")
    else:
        f.branch(f"br label %{body}")
    before = f.label
    f.start(body)
    names = len(f.scopes)
    var, following = f.fresh(names), f.fresh(names)
    phi: list[Any] = []
    f.lines.append(phi)
    f.vars[s.var] = var
    if small:
        f.nonnegative.add(var)
    around, f.turn = f.turn, var if t == "i64" else f.turn
    with f.scope():
        statement(f, s.body)
        phi.append(f"  {var} = phi {t} [ {start}, %{before} ], [ {following}, %{f.label} ]")
        f.line(f"{following} = add {'nuw ' if small else ''}nsw {t} {var}, 1")
        again = f.op(f"icmp slt {t} {following}, {end}")
        f.line(f"br i1 {again}, label %{body}, label %{done}, !llvm.loop {_loop_hints(f, dict(s.attrs))}")
    f.turn = around
    f.start(done)


def _loop_hints(f: Function, attrs: dict[str, Any]) -> str:
    n = attrs.get("unroll")
    unroll = f.module.node(f'!{{!"llvm.loop.unroll.count", i32 {n}}}') if n and n > 1 else "!0"
    return f.module.node(f"distinct !{{!self, {unroll}, !1}}")


def _let(f: Function, s: ir.Let) -> None:
    t = s.value.dtype
    if t.kind == "int" and t.bits == 64 and t.lanes == 1 and isinstance(s.value, (ir.Add, ir.Sub, ir.Mul, ir.Const, ir.Var)):
        f.affine[s.var] = address.linear(f, s.value)
    f.vars[s.var] = f.value(s.value)
    statement(f, s.body)


def _if(f: Function, s: ir.If) -> None:
    cond = f.value(s.cond)
    yes, done = f.fresh_label("then"), f.fresh_label("join")
    no = f.fresh_label("else") if s.otherwise is not None else done
    f.branch(f"br i1 {cond}, label %{yes}, label %{no}")
    for label, side in ((yes, s.then), (no, s.otherwise)):
        if side is None:
            continue
        f.start(label)
        with f.scope():
            statement(f, side)
        f.line(f"br label %{done}")
    f.start(done)


def _while(f: Function, s: ir.While) -> None:
    test, body, done = f.fresh_label("test"), f.fresh_label("while"), f.fresh_label("done")
    f.branch(f"br label %{test}")
    f.start(test)
    with f.scope():
        cond = f.value(s.cond)
        f.branch(f"br i1 {cond}, label %{body}, label %{done}")
        f.start(body)
        f.statement()
        with f.scope():
            statement(f, s.body)
        f.line(f"br label %{test}")
    f.start(done)


def _allocate(f: Function, s: ir.Allocate) -> None:
    b = s.buffer
    if b.data is not None:
        f.memory[b] = Memory(table(f, b), 64)
    elif s.offset is not None and s.offset.dtype.kind == "handle":
        f.memory[b] = Memory(_grown(f, f.value(s.offset)), 64)
    elif s.offset is not None:
        field = 8 if b.scope == "const" else 0
        at = f.pure(f"getelementptr inbounds i8, ptr %ctx, i64 {field}") if field else "%ctx"
        base = f.pure(f"load ptr, ptr {at}, !invariant.load !3", at)
        p = address.linear(f, s.offset)
        constant = set(p) <= {()} and p.get((), 0) % 64 == 0
        f.memory[b] = Memory(address.pointer(f, base, "i8", p), 64 if constant else b.dtype.nbytes)
    elif b.scope == "local":
        f.memory[b] = Memory(_stack(f, b), 64)
    else:
        raise InternalError(f"the {b.scope} buffer {b.name} has no planned offset")


def _stack(f: Function, b: ir.Buffer) -> str:
    size = 1
    for n in b.shape:
        k = ir.as_int(n)
        if k is None:
            raise InternalError(f"the local buffer {b.name} has no constant size")
        size *= k
    size = -(-size // b.packing)
    if size * b.dtype.nbytes > _BY_VALUE_LIMIT:
        raise InternalError(f"the local buffer {b.name} is larger than {_BY_VALUE_LIMIT} bytes: it belongs in the arena")
    name = f.fresh(0)
    f.allocas.append(f"  {name} = alloca [{size} x {memory_scalar(b.dtype)}], align 64")
    return name


def _grown(f: Function, pointer: str) -> str:
    """Memory that the runtime may refuse: it has filled the error record, so return its code for that."""
    bad = f.op(f"icmp eq ptr {pointer}, null")
    _leave_if(f, bad, "2")
    return pointer


def _leave_if(f: Function, bad: str, status: str, before: str = "") -> None:
    leave, go = f.fresh_label("fail"), f.fresh_label("ok")
    f.line(f"br i1 {bad}, label %{leave}, label %{go}, !prof !2")
    f.start(leave)
    if before:
        f.line(before)
    f.line(f"ret i32 {status}")
    f.start(go)


def _assert(f: Function, s: ir.Assert) -> None:
    bad = f.op(f"xor i1 {f.value(s.cond)}, true")
    _fail_if(f, bad, s.code, s.message, [f"i64 {f.value(v)}" for v in s.values])


def _fail_if(f: Function, bad: str, code: int, message: str, values: list[str]) -> None:
    """Return `code` if `bad`; the message and up to three values that fill its places go to the error record."""
    text = message.encode()
    name = f"@message{len(f.module.globals)}"
    escaped = "".join([chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:02X}" for c in text])
    f.module.globals.append(f'{name} = private unnamed_addr constant [{len(text) + 1} x i8] c"{escaped}\\00"')
    if not values:
        f.module.declare("@tw_fail", "declare i32 @tw_fail(ptr, i32, ptr) #2")
        _leave_if(f, bad, str(code), f"call i32 @tw_fail(ptr %ctx, i32 {code}, ptr {name})")
        return
    f.module.declare("@tw_fail_values", "declare i32 @tw_fail_values(ptr, i32, ptr, i64, i64, i64) #2")
    given = ", ".join(values + ["i64 0"] * (3 - len(values)))
    _leave_if(f, bad, str(code), f"call i32 @tw_fail_values(ptr %ctx, i32 {code}, ptr {name}, {given})")


def _extern_call(f: Function, s: ir.ExternCall) -> None:
    """A call by the target's C calling convention, which wants integers of 32 bits extended as their signs say."""
    types, args = [], []
    for a in s.args:
        if isinstance(a, ir.Load):
            memory_of(f, a.buffer)
            types.append("ptr")
            args.append(f"ptr {address.address(f, a.buffer, a.indices)}")
            continue
        types.append(register_type(a.dtype) + (" signext" if a.dtype.is_int and a.dtype.bits == 32 else ""))
        args.append(f"{types[-1]} {f.value(a)}")
    result = "i32" if s.status else "void"
    f.module.declare(f"@{s.symbol}", f"declare {result} @{s.symbol}({', '.join(types)})")
    call = f"call {result} @{s.symbol}({', '.join(args)})"
    if not s.status:
        f.line(call)
        return
    status = f.op(call)
    _fail_if(f, f.op(f"icmp ne i32 {status}, 0"), EXTERN_FAILED, f"the external function {s.symbol} returned {{}}",
                 [f"i64 {f.op(f'sext i32 {status} to i64')}"])


# ---- calls of programs -----------------------------------------------------------------------------------------------
def _launch(f: Function, s: ir.Launch) -> None:
    types = ["ptr" if isinstance(a, ir.Address) else memory_scalar(a.dtype) for a in s.args]
    args = []
    for a, t in zip(s.args, types, strict=True):
        v = f.value(a)
        if register_type(a.dtype) != t:
            v = f.op(f"{'sext' if a.dtype.kind == 'int' else 'zext'} {register_type(a.dtype)} {v} to {t}")
        args.append(f"{t} {v}")
    if s.callee == ir.HOST_CALL:
        status = _host_call(f, args)
        _leave_if(f, f.op(f"icmp ne i32 {status}, 0"), status)
        return
    if s.grid:
        _launch_on_device(f, s)
        return
    if s.callee not in f.module.defined:
        task = ["i64"] if s.tasks is not None else []
        f.module.declare(f"@{s.callee}", f"declare i32 @{s.callee}({', '.join(['ptr', *task, *types])})")
    if s.tasks is None:
        status = f.op(f"call i32 @{s.callee}({', '.join(['ptr %ctx', *args])})")
    else:
        _store_closure(f, args)
        run, turn = ("tw_parallel_turn", [f"i64 {f.turn}"]) if f.turn else ("tw_parallel", [])
        f.module.declare(f"@{run}", f"declare i32 @{run}(ptr, ptr, ptr, i64{', i64' if turn else ''})")
        body = _region(f.module, s.callee, types)
        given = ", ".join(["ptr %ctx", f"ptr {body}", "ptr %closure", f"i64 {f.value(s.tasks)}", *turn])
        status = f.op(f"call i32 @{run}({given})")
    _leave_if(f, f.op(f"icmp ne i32 {status}, 0"), status)


def _store_closure(f: Function, args: list[str]) -> None:
    f.closure_slots = max(f.closure_slots, len(args), 1)
    for k, arg in enumerate(args):
        at = f.op(f"getelementptr inbounds i64, ptr %closure, i64 {k}")
        f.line(f"store {arg}, ptr {at}, align 8")


def _host_call(f: Function, args: list[str]) -> str:
    """The status of a function of the host, which gets its addresses as an array."""
    slot, *places = args
    _store_closure(f, places)
    f.module.declare(f"@{ir.HOST_CALL}", f"declare i32 @{ir.HOST_CALL}(ptr, i32, ptr, i32)")
    return f.op(f"call i32 @{ir.HOST_CALL}(ptr %ctx, {slot}, ptr %closure, i32 {len(places)})")


def _launch_on_device(f: Function, s: ir.Launch) -> None:
    """tw_launch(ctx, name, grid, buffers, how many, numbers, how many): all in one array on the stack."""
    buffers = [a for a in s.args if isinstance(a, ir.Address)]
    numbers = [a for a in s.args if not isinstance(a, ir.Address)]
    slots = [*s.grid, *buffers, *numbers]
    f.closure_slots = max(f.closure_slots, len(slots))
    places = []
    for k, a in enumerate(slots):
        v, t = f.value(a), "ptr" if isinstance(a, ir.Address) else "i64"
        if t == "i64" and register_type(a.dtype) != "i64":
            raise InternalError(f"a kernel's number is {a.dtype}, not i64")
        places.append(f.op(f"getelementptr inbounds i64, ptr %closure, i64 {k}"))
        f.line(f"store {t} {v}, ptr {places[-1]}, align 8")
    name = f"@name.{s.callee}"
    if name not in f.module.global_names:
        f.module.global_names[name] = name
        f.module.globals.append(f'{name} = private unnamed_addr constant [{len(s.callee) + 1} x i8] c"{s.callee}\\00"')
    f.module.declare("@tw_launch", "declare i32 @tw_launch(ptr, ptr, ptr, ptr, i32, ptr, i32)")
    at_buffers, at_numbers = (f.op(f"getelementptr inbounds i64, ptr %closure, i64 {k}") for k in (6, 6 + len(buffers)))
    status = f.op(f"call i32 @tw_launch(ptr %ctx, ptr {name}, ptr %closure, ptr {at_buffers}, i32 {len(buffers)}, "
                  f"ptr {at_numbers}, i32 {len(numbers)})")
    _leave_if(f, f.op(f"icmp ne i32 {status}, 0"), status)


def _region(m: ModuleText, callee: str, types: list[str]) -> str:
    """The tw_body that unpacks a closure and calls `callee`: one per callee. A region of the module that has two
    parameters more than it gets arguments takes the range of its tasks; any other takes one task."""
    name = f"@{callee}.body"
    if name in m.global_names:
        return name
    m.global_names[name] = name
    lines = []
    for k, t in enumerate(types):
        lines += [f"  %s{k} = getelementptr inbounds i64, ptr %closure, i64 {k}", f"  %a{k} = load {t}, ptr %s{k}, align 8"]
    args = ", ".join([f"{t} %a{k}" for k, t in enumerate(types)])
    comma = ", " if args else ""
    head = f"define internal i32 {name}(ptr %ctx, ptr %closure, i64 %begin, i64 %end) #0 {{"
    if m.defined.get(callee, 0) == len(types) + 2:
        m.functions.append("\n".join([
            head, *lines, f"  %status = call i32 @{callee}(ptr %ctx, i64 %begin, i64 %end{comma}{args})",
            "  ret i32 %status", "}", ""]))
        return name
    m.functions.append("\n".join([
        head, "entry:", *lines, "  %any = icmp slt i64 %begin, %end", "  br i1 %any, label %loop, label %done", "loop:",
        "  %task = phi i64 [ %begin, %entry ], [ %next, %ok ]",
        f"  %status = call i32 @{callee}(ptr %ctx, i64 %task{comma}{args})",
        "  %bad = icmp ne i32 %status, 0", "  br i1 %bad, label %failed, label %ok, !prof !2", "ok:",
        "  %next = add nsw i64 %task, 1", "  %more = icmp slt i64 %next, %end",
        f"  br i1 %more, label %loop, label %done, !llvm.loop {m.node('distinct !{!self, !0, !1}')}",
        "failed:", "  ret i32 %status", "done:", "  ret i32 0", "}", ""]))
    return name
