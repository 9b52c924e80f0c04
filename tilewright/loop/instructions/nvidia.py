"""Tensor cores of NVIDIA GPUs from compute capability 8.0 on: products of small matrices by one warp.

The instructions are those of the PTX ISA (chapter "Warp Level Matrix Instructions", mma and ldmatrix). A warp holds a matrix
in its threads' registers, as a *fragment*: which thread has which element is the ISA's ("Matrix Fragments for
mma.m16n8k16", "… m16n8k8"), here as `Fragment`s. In a program a fragment is a buffer of scope "warp": an ordinary matrix,
tile by tile. A schedule copies the operands into such buffers (cache_read "warp"), lets the product write into one
(cache_write "warp") and tensorizes what fills, loads, multiplies and stores them:

    k outer | load a: MMA_LOAD_A | load b: MMA_LOAD_B | product: MMA_F16 (its initialisation before: MMA_FILL) | MMA_STORE

in tiles of 16 × 16 (a), 16 × 8 (b) and 16 × 8 (c), warps along threadIdx.y or z, nothing bound to threadIdx.x.
TF32 rounds its operands to ten bits of mantissa, so its loads are tensorized with allow="tf32".
"""
from __future__ import annotations

from typing import NamedTuple

from tilewright.loop.tensor_intrinsics import Fragment, TensorIntrinsic, tensor_intrinsic

A16 = Fragment("mma.m16n8k16.a", (16, 16), lambda i, k: i % 8 * 4 + k % 8 // 2, lambda i, k: k // 8 * 4 + i // 8 * 2 + k % 2)
B16 = Fragment("mma.m16n8k16.b", (16, 8), lambda k, j: j * 4 + k % 8 // 2, lambda k, j: k // 8 * 2 + k % 2)
A8 = Fragment("mma.m16n8k8.a", (16, 8), lambda i, k: i % 8 * 4 + k % 4, lambda i, k: k // 4 * 2 + i // 8)
B8 = Fragment("mma.m16n8k8.b", (8, 8), lambda k, j: j * 4 + k % 4, lambda k, j: k // 4)
C = Fragment("mma.m16n8.c", (16, 8), lambda i, j: i % 8 * 4 + j // 2, lambda i, j: i // 8 * 2 + j % 2)

_PAIRS_A = """
    const unsigned short *p = (const unsigned short *)($a) + $lane / 4 * ($a.0) + $lane % 4 * 2 * ($a.1);
    unsigned *r = (unsigned *)($f);
    r[0] = p[0] | (unsigned)p[$a.1] << 16;
    r[1] = p[8 * ($a.0)] | (unsigned)p[8 * ($a.0) + ($a.1)] << 16;
    r[2] = p[8 * ($a.1)] | (unsigned)p[9 * ($a.1)] << 16;
    r[3] = p[8 * ($a.0) + 8 * ($a.1)] | (unsigned)p[8 * ($a.0) + 9 * ($a.1)] << 16;
"""
_PAIRS_B = """
    const unsigned short *p = (const unsigned short *)($b) + $lane % 4 * 2 * ($b.0) + $lane / 4 * ($b.1);
    unsigned *r = (unsigned *)($f);
    r[0] = p[0] | (unsigned)p[$b.0] << 16;
    r[1] = p[8 * ($b.0)] | (unsigned)p[9 * ($b.0)] << 16;
"""
_MATRIX_A = """
    const unsigned at = (unsigned)__cvta_generic_to_shared($a + $lane % 16 * ($a.0) + $lane / 16 * 8);
    unsigned *r = (unsigned *)($f);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
"""
_MATRIX_B = """
    const unsigned at = (unsigned)__cvta_generic_to_shared($b + $lane % 16 * ($b.0));
    unsigned *r = (unsigned *)($f);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
"""
_TURNED_A = """
    const unsigned at = (unsigned)__cvta_generic_to_shared($a + ($lane % 8 + $lane / 16 * 8) * ($a.0) + $lane / 8 % 2 * 8);
    unsigned *r = (unsigned *)($f);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
"""
_TURNED_B = """
    const unsigned at = (unsigned)__cvta_generic_to_shared($b + $lane % 8 * ($b.0) + $lane / 8 % 2 * 8);
    unsigned *r = (unsigned *)($f);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
"""
_PRODUCT = """
    const unsigned *a = (const unsigned *)($a), *b = (const unsigned *)($b);
    float *c = $c;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.@.@.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
"""


def _load(name: str, t: str, fragment: Fragment, source: str, code: str, *, turned: bool = False, rows: bool = False,
          rounds: str = "") -> TensorIntrinsic:
    """The load of a fragment from a matrix, or from one that is `turned`: its transpose. `rows`: from shared memory, where
    eight elements of a row lie one behind the other and aligned."""
    m, n = fragment.shape
    shape, element = (f"{n}, {m}", "j, i") if turned else (f"{m}, {n}", "i, j")
    return tensor_intrinsic(f"""
        program {name}(f: {t}[{m}, {n}] warp, {source}: {t}[{shape}]{" shared strides[0, 1]" if rows else ""}):
            for i in 0..{m}:
                for j in 0..{n}:
                    f[i, j] = {source}[{element}]
    """, {"cuda": code}, threads=32, requires="mma", fragments={"f": fragment}, aligned={source: 8} if rows else {},
        rounds=rounds)


def _of(t: str) -> tuple[TensorIntrinsic, ...]:
    """Loads, by matrix instructions where rows are in shared memory and aligned, and the product, for one element type."""
    loads = (_load(f"mma_load_a_{t}", t, A16, "a", _PAIRS_A), _load(f"mma_load_b_{t}", t, B16, "b", _PAIRS_B),
             _load(f"ldmatrix_a_{t}", t, A16, "a", _MATRIX_A, rows=True),
             _load(f"ldmatrix_b_{t}", t, B16, "b", _MATRIX_B, rows=True),
             _load(f"ldmatrix_turned_a_{t}", t, A16, "a", _TURNED_A, turned=True, rows=True),
             _load(f"ldmatrix_turned_b_{t}", t, B16, "b", _TURNED_B, turned=True, rows=True))
    product = tensor_intrinsic(f"""
        program mma_m16n8k16_{t}(c: f32[16, 8] warp, a: {t}[16, 16] warp, b: {t}[16, 8] warp):
            for i in 0..16:
                for j in 0..8:
                    for k in 0..16:
                        c[i, j] = c[i, j] + f32(a[i, k]) * f32(b[k, j])
    """, {"cuda": _PRODUCT.replace("@", t)}, threads=32, requires="mma", fragments={"c": C, "a": A16, "b": B16})
    return *loads, product


(MMA_LOAD_A_F16, MMA_LOAD_B_F16, LDMATRIX_A_F16, LDMATRIX_B_F16, LDMATRIX_TURNED_A_F16, LDMATRIX_TURNED_B_F16,
 MMA_F16) = _of("f16")
(MMA_LOAD_A_BF16, MMA_LOAD_B_BF16, LDMATRIX_A_BF16, LDMATRIX_B_BF16, LDMATRIX_TURNED_A_BF16, LDMATRIX_TURNED_B_BF16,
 MMA_BF16) = _of("bf16")


def _copy(t: str, n: int) -> TensorIntrinsic:
    """cp.async (PTX ISA, "Asynchronous copy"): 16 bytes from global into shared memory past the registers."""
    return tensor_intrinsic(f"""
        program cp_async_{t}(to: {t}[{n}] shared strides[1], source: {t}[{n}] strides[1]):
            for i in 0..{n}:
                to[i] = source[i]
    """, {"cuda": """
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     :: "r"((unsigned)__cvta_generic_to_shared($to)), "l"($source) : "memory");
    """}, requires="cp_async", aligned={"to": n, "source": n}, asynchronous=True)


CP_ASYNC_F32, CP_ASYNC_F16, CP_ASYNC_BF16 = _copy("f32", 4), _copy("f16", 8), _copy("bf16", 8)
"""In place of a vectorized loop of a cooperative copy: tensorize that loop. What is copied may arrive as late as at the next
barrier, so a pipelined loop computes meanwhile."""

MMA_FILL = tensor_intrinsic("""
    program mma_fill(c: f32[16, 8] warp):
        for i in 0..16:
            for j in 0..8:
                c[i, j] = 0.0
""", {"cuda": """
    float *c = $c;
    c[0] = c[1] = c[2] = c[3] = 0.0f;
"""}, threads=32, requires="mma", fragments={"c": C})

MMA_STORE = tensor_intrinsic("""
    program mma_store(o: f32[16, 8], c: f32[16, 8] warp):
        for i in 0..16:
            for j in 0..8:
                o[i, j] = c[i, j]
""", {"cuda": """
    const float *c = $c;
    float *o = $o + $lane / 4 * ($o.0) + $lane % 4 * 2 * ($o.1);
    o[0] = c[0];
    o[$o.1] = c[1];
    o[8 * ($o.0)] = c[2];
    o[8 * ($o.0) + ($o.1)] = c[3];
"""}, threads=32, requires="mma", fragments={"c": C})

MMA_LOAD_A_TF32 = _load("mma_load_a_tf32", "f32", A8, "a", """
    const float *p = $a + $lane / 4 * ($a.0) + $lane % 4 * ($a.1);
    unsigned *r = (unsigned *)($f);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[0]) : "f"(p[0]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[1]) : "f"(p[8 * ($a.0)]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[2]) : "f"(p[4 * ($a.1)]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[3]) : "f"(p[8 * ($a.0) + 4 * ($a.1)]));
""", rounds="tf32")

MMA_LOAD_B_TF32 = _load("mma_load_b_tf32", "f32", B8, "b", """
    const float *p = $b + $lane % 4 * ($b.0) + $lane / 4 * ($b.1);
    unsigned *r = (unsigned *)($f);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[0]) : "f"(p[0]));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r[1]) : "f"(p[4 * ($b.0)]));
""", rounds="tf32")

MMA_TF32 = tensor_intrinsic("""
    program mma_m16n8k8_tf32(c: f32[16, 8] warp, a: f32[16, 8] warp, b: f32[8, 8] warp):
        for i in 0..16:
            for j in 0..8:
                for k in 0..8:
                    c[i, j] = c[i, j] + a[i, k] * b[k, j]
""", {"cuda": """
    const unsigned *a = (const unsigned *)($a), *b = (const unsigned *)($b);
    float *c = $c;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
"""}, threads=32, requires="mma", fragments={"c": C, "a": A8, "b": B8})


class Loads(NamedTuple):
    """The instructions that load one operand of a product from shared memory: whose rows lie one behind the other, whose
    columns do, and of any layout."""
    rows: TensorIntrinsic
    columns: TensorIntrinsic
    any: TensorIntrinsic


class MatrixProduct(NamedTuple):
    """The instructions of a product of one type of operands: c[16, 8] += a[16, depth] · b[depth, 8]."""
    a: Loads
    b: Loads
    multiply: TensorIntrinsic
    copy: TensorIntrinsic

    @property
    def depth(self) -> int:
        """Elements of the sum that one instruction adds up."""
        return self.a.any.fragments["f"].shape[1]

    @property
    def rounds(self) -> str:
        """The type to which operands are rounded, "" if they are not."""
        return self.a.any.rounds


PRODUCTS = {
    "f16": MatrixProduct(Loads(LDMATRIX_A_F16, LDMATRIX_TURNED_A_F16, MMA_LOAD_A_F16),
                         Loads(LDMATRIX_B_F16, LDMATRIX_TURNED_B_F16, MMA_LOAD_B_F16), MMA_F16, CP_ASYNC_F16),
    "bf16": MatrixProduct(Loads(LDMATRIX_A_BF16, LDMATRIX_TURNED_A_BF16, MMA_LOAD_A_BF16),
                          Loads(LDMATRIX_B_BF16, LDMATRIX_TURNED_B_BF16, MMA_LOAD_B_BF16), MMA_BF16, CP_ASYNC_BF16),
    "tf32": MatrixProduct(Loads(*[MMA_LOAD_A_TF32] * 3), Loads(*[MMA_LOAD_B_TF32] * 3), MMA_TF32, CP_ASYNC_F32),
}
"""By the type that the tensor cores multiply; TF32 of operands that are f32."""
