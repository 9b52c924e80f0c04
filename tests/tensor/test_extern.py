"""Stages that C functions compute: declared, scheduled with others, run in every way, saved; what is said of mistakes."""
# mypy: ignore-errors
# ruff: noqa: F821, UP037 (sizes are names in quotes)
from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tilewright import te
from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.dtype import i32
from tilewright.core.errors import InternalError, UserError
from tilewright.loop.interpret import AssertFailed, run
from tilewright.loop.ir import ExternCall, const
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.parser import parse_program
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor.schedule.state import ScheduleError
from tilewright.tensor.script import f32, kernel

SOURCE = r"""
#include <stdint.h>
void own_scale_rows(const float *x, float *y, int64_t r, int64_t c, int64_t r2, int64_t c2) {
  for (int64_t i = 0; i < r; i++) for (int64_t j = 0; j < c; j++) y[i * c + j] = x[i * c + j] * (float)(i + 1);
}
void own_axpy(int32_t n, double a, const float *x, const float *y, float *z) {
  for (int64_t i = 0; i < n; i++) z[i] = (float)a * x[i] + y[i];
}
int own_status(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = x[i];
  return x[0] < 0 ? (int)x[0] : 0;
}
void own_split(const float *x, float *even, double *odd, int64_t n) {
  for (int64_t i = 0; i < n; i++) { even[i] = x[2 * i]; odd[i] = x[2 * i + 1]; }
}
"""


def scale_rows(x, y, r, c, *_):
    y[:r * c] = (x[:r * c].reshape(r, c) * np.arange(1, r + 1, dtype=np.float32)[:, None]).reshape(-1)


def axpy(n, a, x, y, z):
    z[:n] = np.float32(a) * x[:n] + y[:n]


def status(x, y, n):
    y[:n] = x[:n]
    return int(min(0, x[0]))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extern")
    (folder / "own.c").write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", "libown.so", "own.c"], cwd=folder, check=True)
    return folder / "libown.so"


@pytest.fixture
def scaling(library):
    return te.extern_function("own_scale_rows", library, reference=scale_rows)


def around(function, rows=4, columns=6):
    """x + 1, then the function, then twice that."""
    x = te.placeholder((rows, columns), name="x")
    a = te.compute((rows, columns), lambda i, j: x[i, j] + 1.0, "a")
    b = te.extern((rows, columns), [a], function, "b")
    return x, a, b, te.compute((rows, columns), lambda i, j: b[i, j] * 2.0, "c")


def program(function, *shape):
    x, _, _, c = around(function, *shape)
    return te.create_program("rows", [x], [c])


def given(rows=4, columns=6):
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return x, (x + 1) * np.arange(1, rows + 1, dtype=np.float32)[:, None] * 2


# ---- running ---------------------------------------------------------------------------------------------------------
def test_compiled_and_interpreted_before_and_after_lowering(scaling):
    made = program(scaling)
    x, want = given()
    out = np.zeros_like(want)
    verify(made)
    run(made, [x, out])
    np.testing.assert_array_equal(out, want)
    module = lower(made)
    verify(module, "emitted")
    scratch = [np.zeros([4, 6], np.float32) for _ in module.programs[0].params[2:]]
    run(module, [x, out := np.zeros_like(want), *scratch])
    np.testing.assert_array_equal(out, want)
    built = te.build(te.Schedule(made))
    np.testing.assert_array_equal(built(x), want)
    assert "call void @own_scale_rows(ptr" in built.source and "extern own_scale_rows(&a[0, 0], &b[0, 0], 4, 6, 4, 6)" \
        in built.loops


def test_text_reads_back(scaling):
    made = program(scaling)
    assert str(parse_program(str(made))) == str(made)


def test_numbers_in_any_order_and_several_results(library):
    add = te.extern_function("own_axpy", library, reference=axpy)
    x, y = te.placeholder((5,), name="x"), te.placeholder((5,), name="y")
    z = te.extern((5,), [x, y], lambda ins, outs: te.call(add, const(5, i32), 3.0, *ins, *outs), "z")
    apart = te.extern_function("own_split", library)
    even, odd = te.extern([(3,), (3,)], [te.placeholder((6,), name="w")],
                          lambda ins, outs: te.call(apart, ins[0], *outs, outs[0].shape[0]), "parts", ["f32", "f64"])
    v, w = np.arange(5, dtype=np.float32), np.full(5, 0.5, np.float32)
    made = te.create_program("axpy", [x, y], [z])
    out = np.zeros(5, np.float32)
    run(made, [v, w, out])
    np.testing.assert_array_equal(out, 3 * v + w)
    np.testing.assert_array_equal(te.build(made)(v, w), 3 * v + w)
    got = te.build(te.create_schedule([even, odd]))(np.arange(6, dtype=np.float32))
    assert [g.dtype.name for g in got] == ["float32", "float64"]
    np.testing.assert_array_equal(got, [[0, 2, 4], [1, 3, 5]])


def test_a_function_of_the_process():
    x = te.placeholder((4,), name="x")
    y = te.extern((4,), [x], lambda ins, outs: te.call("memcpy", outs[0], ins[0], 16), "y")
    np.testing.assert_array_equal(te.build(te.create_schedule(y))(np.arange(4, dtype=np.float32)), np.arange(4))


def test_a_status_ends_the_run(library):
    checked = te.extern_function("own_status", library, status=True, reference=status)
    x = te.placeholder((3,), name="x")
    made = te.create_program("checked", [x], [te.extern((3,), [x], lambda i, o: te.call(checked, *i, *o, 3), "y")])
    assert "extern own_status(&x[0], &y[0], 3) status:" in str(made) and str(parse_program(str(made))) == str(made)
    f = te.build(made)
    good, bad = np.ones(3, np.float32), np.full(3, -7, np.float32)
    np.testing.assert_array_equal(f(good), good)
    with pytest.raises(UserError, match="own_status returned -7"):
        f(bad)
    run(made, [good, np.zeros(3, np.float32)])
    with pytest.raises(AssertFailed, match="own_status returned -7"):
        run(made, [bad, np.zeros(3, np.float32)])


def test_a_kernel_of_the_kernel_language_as_the_body():
    @kernel
    def running(x: f32["n"], y: f32["n"]):
        for i in range(n):
            y[i] = x[i] + (y[i - 1] if i > 0 else 0.0)

    x = te.placeholder((6,), name="x")
    y = te.extern((6,), [x], running, "y")
    np.testing.assert_array_equal(te.build(te.create_schedule(y))(np.ones(6, np.float32)), np.arange(1, 7))
    with pytest.raises(UserError, match=r"compute-invalid.*makes f32\[6\], not f32\[7\]"):
        te.extern((7,), [x], running, "y")


def test_in_a_scan_every_step_is_a_call(scaling):
    h0 = te.placeholder((2, 3), name="h0")

    def step(t, h):
        before = te.compute((2, 3), lambda i, j: h[i, j] + 1.0, "before")
        return te.extern((2, 3), [before], scaling, "after")
    y = te.scan(3, [h0], step, "y")
    made = te.create_program("steps", [h0], [y])
    h, want = np.zeros((2, 3), np.float32), []
    for _ in range(3):
        h = (h + 1) * np.array([[1], [2]], np.float32)
        want.append(h)
    out = np.zeros((3, 2, 3), np.float32)
    run(made, [np.zeros((2, 3), np.float32), out])
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(te.build(made)(np.zeros((2, 3), np.float32)), want)
    sch = te.Schedule(made)
    loop = sch.loops(sch.block("after"))[0]
    with pytest.raises(ScheduleError):
        sch.parallel(loop)
    with pytest.raises(UserError, match="copy the state"):
        te.create_program("steps", [h0], [te.scan(3, [h0], lambda t, h: te.extern((2, 3), [h], scaling, "after"), "y")])


# ---- C ---------------------------------------------------------------------------------------------------------------
def test_c_source_compiles_and_calls(scaling, library, tmp_path):
    import ctypes
    text = LANGUAGES["c"].prelude + print_kernels(lower(program(scaling)).programs, LANGUAGES["c"])
    assert "void own_scale_rows(const float *, float *, int64_t, int64_t, int64_t, int64_t);" in text
    (tmp_path / "rows.c").write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-Werror", "-Wall", "-o", "rows.so", "rows.c", str(library), "-lm",
                    f"-Wl,-rpath,{library.parent}"], cwd=tmp_path, check=True)
    x, want = given()
    arrays = [x, np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)]
    ctypes.CDLL(str(tmp_path / "rows.so")).rows(*[ctypes.c_void_p(a.ctypes.data) for a in arrays])
    np.testing.assert_array_equal(arrays[1], want)


# ---- schedules -------------------------------------------------------------------------------------------------------
def test_both_faces_schedule_what_is_around(scaling):
    x, a, b, c = around(scaling)
    s = te.create_schedule(c)
    s[a].vectorize(s[a].split(a.op.axis[1], 2)[1])
    s[c].parallel(c.op.axis[0])
    copy = s.cache_read(a, "local", [b])
    s[copy].unroll(copy.op.axis[0])
    arrays, want = given()
    built = te.build(s, args=[x, c])
    np.testing.assert_array_equal(built(arrays), want)
    assert "own_scale_rows(&a_local[0, 0]" in str(built.program)

    sch = te.Schedule(program(scaling))
    sch.parallel(sch.loops(sch.block("a"))[0])
    sch.fuse(*sch.loops(sch.block("c")))
    sch.add_unit_loop(sch.block("b"))
    sch.annotate(sch.block("b"), "note", 1)
    np.testing.assert_array_equal(te.build(sch)(arrays), want)
    again = te.replay(sch.trace, program(scaling))
    assert str(again.program) == str(sch.program)


INSIDE = {
    "compute_at": lambda s, b: s.compute_at(b, s.loops(s.block("c"))[0]),
    "reverse_compute_at": lambda s, b: s.reverse_compute_at(b, s.loops(s.block("a"))[0]),
    "compute_inline": lambda s, b: s.compute_inline(b),
    "reverse_compute_inline": lambda s, b: s.reverse_compute_inline(b),
    "cache_write": lambda s, b: s.cache_write(b, 0, "local"),
    "storage_align": lambda s, b: s.storage_align(b, 0, 0, 8, 1),
    "transform_layout": lambda s, b: s.transform_layout(b, "b", lambda i, j: [j, i]),
    "blockize": lambda s, b: s.apply("blockize", b),
    "tensorize": lambda s, b: s.apply("tensorize", b, "dot"),
    "rfactor": lambda s, b: s.apply("rfactor", b, s.loops(s.block("a"))[0]),
    "double_buffer": lambda s, b: s.apply("double_buffer", b)}


@pytest.mark.parametrize("name", INSIDE)
def test_what_would_look_inside_is_refused(scaling, name):
    sch = te.Schedule(program(scaling))
    before = str(sch.program)
    with pytest.raises(ScheduleError, match=f"{name}: block b calls the external function own_scale_rows, into which"):
        INSIDE[name](sch, sch.block("b"))
    assert str(sch.program) == before


def test_what_it_reads_and_writes_stays_whole(scaling):
    def refused(why, change):
        sch = te.Schedule(program(scaling))
        before = str(sch.program)
        with pytest.raises(ScheduleError, match=why):
            change(sch)
        assert str(sch.program) == before
    refused("the address of a tensor, not a value", lambda s: s.compute_inline(s.block("a")))
    refused("where they are", lambda s: s.transform_layout(s.block("c"), "b", lambda i, j: [i, 5 - j]))
    refused("as it is, row by row", lambda s: s.transform_layout(s.block("a"), "a", lambda i, j: [j, i]))
    refused("without gaps", lambda s: s.storage_align(s.block("a"), 0, 0, 8, 1))
    refused("cannot address shared memory", lambda s: s.set_scope(s.block("a"), 0, "shared"))
    refused("compute_at: ", lambda s: s.compute_at(s.block("a"), s.loops(s.block("c"))[0]))
    refused("reverse_compute_at: ", lambda s: s.reverse_compute_at(s.block("c"), s.loops(s.block("a"))[0]))


def test_stages_say_that_they_have_no_loops(scaling):
    _, a, b, c = around(scaling)
    s = te.create_schedule(c)
    assert b.op.axis == () and s[b].op.axis == ()
    i, j = a.op.axis
    for wrong in (lambda: s[b].split(i, 2), lambda: s[b].vectorize(j), lambda: s[b].reorder(j, i)):
        with pytest.raises(UserError, match="stage b is computed by the external function own_scale_rows: it has no loops"):
            wrong()
    s[b].compute_at(s[c], c.op.axis[0])
    with pytest.raises(ScheduleError, match="compute_at: block b calls the external function"):
        s.schedule()


def test_the_default_schedule_keeps_the_call(scaling):
    x, want = given(64, 48)
    sch = te.schedule_program(program(scaling, 64, 48), get_target("native"))
    assert not sch.fallback and "vectorized" in str(sch.program)
    np.testing.assert_array_equal(te.build(sch)(x), want)


# ---- models ----------------------------------------------------------------------------------------------------------
def net(shape=(4, 6)):
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("ScaleRows", ["a"], ["s"], domain="mine"),
             helper.make_node("Neg", ["s"], ["y"])]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_in_a_model_and_in_its_library(scaling, tmp_path):
    op = tilewright.custom_op("mine::ScaleRows", lambda x: te.extern(x.shape, [x], scaling, "s"))
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    want = -np.abs(x) * np.arange(1, 5, dtype=np.float32)[:, None]
    with tilewright.compile(net(), custom_ops=[op], verify=True) as made:
        np.testing.assert_array_equal(made(x), want)
        made.save(tmp_path / "net.so")
    np.save(tmp_path / "x.npy", x)
    script = "import numpy, tilewright; numpy.save('y.npy', tilewright.load('net.so')(numpy.load('x.npy')))"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)  # where nothing has loaded the functions yet
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


def test_in_a_model_of_symbolic_size(scaling):
    op = tilewright.custom_op("mine::ScaleRows", lambda x: te.extern(x.shape, [x], scaling, "s"))
    with tilewright.compile(net(("rows", 6)), custom_ops=[op]) as made:
        for rows in (1, 5):
            x = np.ones((rows, 6), np.float32)
            np.testing.assert_array_equal(made(x), -x * np.arange(1, rows + 1, dtype=np.float32)[:, None])


def test_a_library_needs_to_know_where_functions_are(tmp_path):
    copied = lambda x: te.extern(x.shape, [x], lambda ins, outs: te.call("memcpy", *outs, *ins, 96))  # noqa: E731
    op = tilewright.custom_op("mine::ScaleRows", copied)
    with tilewright.compile(net(), custom_ops=[op]) as made, pytest.raises(UserError, match="save-extern"):
        made.save(tmp_path / "net.so")


# ---- mistakes --------------------------------------------------------------------------------------------------------
def test_what_is_not_found():
    x = te.placeholder((4,), name="x")
    missing = te.create_schedule(te.extern((4,), [x], "own_nowhere", "y"))
    with pytest.raises(UserError, match=r"extern-unresolved.*own_nowhere.*process has loaded: there is no such symbol"):
        te.build(missing)(np.zeros(4, np.float32))
    no_file = te.extern_function("own_no_file", "/nowhere/libnone.so")
    with pytest.raises(UserError, match=r"extern-unresolved.*libnone.so: it cannot be loaded"):
        te.build(te.create_schedule(te.extern((4,), [x], no_file, "y")))(np.zeros(4, np.float32))
    op = tilewright.custom_op("mine::ScaleRows", lambda x: te.extern(x.shape, [x], "own_nowhere"))
    with pytest.raises(UserError, match="extern-unresolved"):
        tilewright.compile(net(), custom_ops=[op])


def test_the_interpreter_needs_a_reference():
    x = te.placeholder((4,), name="x")
    made = te.create_program("f", [x], [te.extern((4,), [x], "own_nowhere", "y")])
    with pytest.raises(UserError, match=r"extern-reference.*own_nowhere"):
        run(made, [np.zeros(4, np.float32), np.zeros(4, np.float32)])


@pytest.mark.parametrize("target", ["opencl", "webgpu", "sm_80"])
def test_devices_do_not_call_the_host(scaling, target):
    made = program(scaling)
    for what in (lambda: te.build(made, target), lambda: te.schedule_program(made, get_target(target))):
        with pytest.raises(UserError, match=r"device-extern.*own_scale_rows"):
            what()
    op = tilewright.custom_op("mine::ScaleRows", lambda x: te.extern(x.shape, [x], scaling))
    with pytest.raises(UserError, match="device-extern"):
        tilewright.compile(net(), target, custom_ops=[op])


def test_mistakes_in_declarations(scaling):
    for symbol in ("two words", "", "tw_launch"):
        with pytest.raises(UserError, match="extern-declaration"):
            te.extern_function(symbol)
    with pytest.raises(UserError, match=r"extern-declaration.*declared before"):
        te.extern_function("own_scale_rows", "another.so")
    x, y = te.placeholder((4,), name="x"), te.placeholder((4,), name="y")
    table = te.const_table(np.arange(4, dtype=np.float32))
    wrongs = {
        "no call": lambda: te.extern((4,), [x], lambda i, o: None),
        "neither an input nor an output": lambda: te.extern((4,), [x], lambda i, o: te.call("f", y, *o)),
        "has no address": lambda: te.extern((4,), [table], "f"),
        "have no address": lambda: te.extern((4,), [x], "f", dtype_="i4"),
        "element x": lambda: te.call("f", x[0]),
        "which is bool": lambda: te.call("f", True),
        "2 shapes and 3 element": lambda: te.extern([(4,), (4,)], [x], "f", dtype_=["f32", "f32", "i32"])}
    for why, wrong in wrongs.items():
        with pytest.raises(UserError, match=f"compute-invalid(.|\n)*{why}"):
            wrong()


def test_the_verifier_knows_calls(scaling):
    made = program(scaling)
    (call,) = [n for n in tilewright.core.node.walk(made) if isinstance(n, ExternCall)]
    loaded = call.args[0].cast("f64")
    with pytest.raises(InternalError, match="loaded in the call"):
        verify(_with(made, call, call.replace(args=(*call.args, loaded))))


def _with(made, old, new):
    return tilewright.core.node.transform(made, lambda n: new if n is old else n)


def test_fusing_around_respects_dependences(scaling):
    """Whatever two primitives are tried around a call: they are refused, or the result is the same."""
    x, want = given()
    moves = {
        "a_at_c": lambda s: s.compute_at(s.block("a"), s.loops(s.block("c"))[0]),
        "c_at_a": lambda s: s.reverse_compute_at(s.block("c"), s.loops(s.block("a"))[0]),
        "inline_a": lambda s: s.compute_inline(s.block("a")),
        "c_into_b": lambda s: s.reverse_compute_inline(s.block("c")),
        "cache_a": lambda s: s.cache_read(s.block("b"), "a", "local", []),
        "cache_b": lambda s: s.cache_read(s.block("c"), "b", "local", []),
        "unit": lambda s: s.add_unit_loop(s.block("b"))}
    legal = 0
    for pair in itertools.product(moves, repeat=2):
        sch = te.Schedule(program(scaling))
        for name in pair:
            try:
                moves[name](sch)
                legal += 1
            except ScheduleError:
                continue
        out = np.zeros_like(want)
        run(sch.program, [x, out])
        np.testing.assert_array_equal(out, want, err_msg=str(pair))
    assert legal > 20
