"""WGSL, the language of WebGPU's shaders, as a table: kernels over words, each a module of its own.

In: nothing. Out: the `Language` of kernels that `loop/lower/word_memory.py` has made of others. Names and meanings are
those of the W3C's WebGPU Shading Language (chapters on keywords, address spaces, built-in functions, accuracy). It has
neither infinities nor NaN in its text and lets a compiler take them for impossible: they come from a variable, and tests
for them look at bits. Integers of 64 bits are of 32 here. `select` evaluates both sides of a choice; a load that the IR
guards may then be outside of its array, which WGSL defines: it gives some value, and that is not chosen.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.codegen.clike.language import Language
from tilewright.loop.lower.legalize_math import ERF_LARGE, ERF_SMALL, GELU, GELU_MOST

MOST_NUMBERS = 128
"""Parameters of a kernel that are not memory itself: where each begins, and sizes."""


def _polynomial(x: str, coefficients: Sequence[float]) -> str:
    """c[0] + c[1]·x + … as nested multiply-adds."""
    text = f"{coefficients[-1]!r}f"
    for c in reversed(coefficients[:-1]):
        text = f"fma({text}, {x}, {c!r}f)"
    return text


_SAME = ("exp", "log", "sqrt", "sin", "cos", "tan", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
         "floor", "ceil", "trunc", "round", "abs")
_MAGNITUDE = "(bitcast<u32>({0}) & 0x7fffffffu)"
_NAN = f"({_MAGNITUDE} > 0x7f800000u)"

_RESERVED = """
alias break case const const_assert continue continuing default diagnostic discard else enable false fn for if let loop
override requires return struct switch true var while NULL Self abstract active alignas alignof as asm asm_fragment
async attribute auto await become cast catch class co_await co_return co_yield coherent column_major common compile
compile_fragment concept const_cast consteval constexpr constinit crate debugger decltype delete demote demote_to_helper
do dynamic_cast enum explicit export extends extern external fallthrough filter final finally friend from fxgroup get
goto groupshared highp impl implements import inline instanceof interface layout lowp macro macro_rules match mediump
meta mod module move mut mutable namespace new nil noexcept noinline nointerpolation non_coherent noncoherent
noperspective null nullptr of operator package packoffset partition pass patch pixelfragment precise precision premerge
priv protected pub public readonly ref regardless register reinterpret_cast require resource restrict self set shared
sizeof smooth snorm static static_assert static_cast std subroutine super target template this thread_local throw trait
try type typedef typeid typename typeof union unless unorm unsafe unsized use using varying virtual volatile wgsl where
with writeonly yield array atomic bool f16 f32 i32 ptr sampler u32 vec2 vec3 vec4 bitcast select all any fma min max
clamp pow tanh exp2 inverseSqrt
atan2 atomicLoad atomicStore atomicAnd atomicOr storageBarrier workgroupBarrier
"""

WGSL = Language(
    name="wgsl",
    types={"f32": "f32", "i64": "i32", "i32": "i32", "u64": "u32", "u32": "u32", "bool": "bool"},
    opening="// kernel {name} {arguments}\n"
            f"@group(0) @binding(8) var<uniform> tw_numbers: array<vec4<i32>, {MOST_NUMBERS // 4}>;\n"
            "var<private> tw_infinity: u32 = 0x7f800000u;",
    declare="@group(0) @binding({at}) var<storage, {access}> {name}: array<{type}>;",
    kernel="@compute @workgroup_size({x}, {y}, {z})\nfn {name}(@builtin(workgroup_id) tw_block: vec3<u32>, "
           "@builtin(local_invocation_id) tw_thread: vec3<u32>)",
    buffer="", number="", begin_number="let {name}: {type} = tw_numbers[{row}][{column}];",
    index={f"{kind}Idx.{x}": f"i32(tw_{kind}.{x})" for kind in ("block", "thread") for x in "xyz"},
    shared="var<workgroup> {name}: array<{type}, {n}>;", shared_outside=True, local="var {name}: array<{type}, {n}>;",
    barrier="storageBarrier(); workgroupBarrier();",
    helper="fn {name}({params}) -> {type}", param="{name}: {type}",
    table="const {name} = array<{type}, {n}>({values});",
    define="let {name}: {type} = {value};", loop="for (var {name}: {type} = {start}; {name} < {end}; {name}++)",
    cast="{type}({0})", select="select({b}, {a}, {cond})", unequal="!({0} == {1})", shift="{0} {1} u32({2})",
    truth=("false", "true"),
    reinterpret="bitcast<{type}>({0})", suffix={"f32": "f", "i64": "", "u64": "u"},
    infinity="bitcast<f32>(tw_infinity)", nan="bitcast<f32>(tw_infinity | 0x400000u)",
    functions={**{name: name + "({0})" for name in _SAME}, "rsqrt": "inverseSqrt({0})", "fma": "fma({0}, {1}, {2})",
               "isnan": _NAN, "isinf": f"({_MAGNITUDE} == 0x7f800000u)"},
    helpers={
        "floordiv": "let r = a / b; return select(r, r - 1, r * b != a && ((a < 0) != (b < 0)));",
        "floormod": "let r = a % b; return select(r, r + b, r != 0 && ((r < 0) != (b < 0)));",
        "min": "return min(a, b);", "min_f32": f"return select(b, a, {_NAN.format('a')} || a < b);",
        "max": "return max(a, b);", "max_f32": f"return select(b, a, {_NAN.format('a')} || a > b);",
        "sign": "return select(select(a, {i}(-1), a < 0), {i}(1), a > 0);", "abs": "return abs(a);",
        "fmod": "return a - b * trunc(a / b);",
        # The built-in overflows in some implementations, and pow is of positive numbers alone.
        "tanh": f"return select(tanh(clamp(a, -15.0f, 15.0f)), a, {_NAN.format('a')});",
        # The built-in ones have errors of 7e-5.
        "asin": "return atan2(a, sqrt((1.0f - a) * (1.0f + a)));",
        "acos": "return atan2(sqrt((1.0f - a) * (1.0f + a)), a);",
        "pow": "let r = pow(abs(a), b); let odd = abs(b - 2.0f * trunc(b * 0.5f)) == 1.0f; "
               "if (b == 0.0f) {{ return 1.0f; }} "
               "if (a < 0.0f && floor(b) != b) {{ return bitcast<f32>(tw_infinity | 0x400000u); }} "
               "return select(r, -r, a < 0.0f && odd);",
        "erf": f"let s = min(abs(a), 4.0f); let q = s * s; let large = 1.0f - exp(-{_polynomial('s', ERF_LARGE)}); "
               f"let m = select(large, fma(s, {_polynomial('q', ERF_SMALL)}, s), s < 0.92f); "
               f"return select(select(m, -m, a < 0.0f), a, {_NAN.format('a')});",
        "gelu": f"let s = min(abs(a), {GELU_MOST!r}f); let tail = exp2({_polynomial('s', GELU)}); "
                f"return select(fma(-s, tail, max(a, 0.0f)), a, {_NAN.format('a')});"},
    reserved=frozenset(_RESERVED.split()),
    atomic={"type": "atomic<{0}>", "load": "atomicLoad(&{0})", "store": "atomicStore(&{0}, {1});",
            "put": "atomicAnd(&{0}, ~{1}); atomicOr(&{0}, {2});"})
