"""What a device is, as data: the facts that schedules, the cost model and code generators ask for.

In: a name ("native", "x86-64-v3", …) or a Target. Out: a `Target`. Presets are in presets.py, detection of the running
machine in host.py; this file has the type alone.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A device and its code generator's settings. Sizes in bytes, rates in bytes per second.

    `cpu`, `features` and `abi` are LLVM's names ("znver5", ("avx2", "fma", …), "lp64d"; "" is the triple's own convention);
    `intrinsics` names the instructions beyond plain arithmetic that schedules may count on ("fma", "f16c", "gather", "vnni",
    "bf16_dot", …). `vector_registers` counts those of `vector_bits`; a CPU without vectors says the bits of one f32. `cores`
    is how many threads may run at once. Cache sizes are per core except `l3` (shared). `memory_operands`: arithmetic may
    take an operand from memory, so what is used once needs no register.

    `kind` is "cpu", or "gpu" for a device whose kernels are blocks of threads, launched by a host program for the machine
    that the other fields describe. Then `language` names the table of `codegen/clike` in which kernels are written,
    `max_threads` is the largest number of threads of a block, `max_block` and `max_grid` are the limits of each axis (x, y,
    z), `shared_memory` the bytes that a block may share, `warp` the threads that run in lockstep, `cores` the blocks that
    run at once, `registers` the 32-bit ones that a thread may have (0: unknown) and `arch_name` the driver's word for the
    device's generation ("sm_80"; "" where it compiles source); `absent` names the functions of f32 that the language has
    not, which become polynomials; `max_parameters` is the largest number of a kernel's buffers and numbers (0: no limit).

    A device that `binds` memory instead of addressing it (WebGPU) takes at most `max_bindings` ranges of `max_binding` bytes
    in a launch, as arrays of 32-bit words, and computes integers in 32 bits; `local_memory` are the bytes that a thread may
    keep in arrays of its own (0: no limit). `device` is the runtime's name of what runs the kernels, where it is not the
    language's.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bits: int = 128
    vector_registers: int = 16
    cores: int = 1
    l1d: int = 32 << 10
    l2: int = 256 << 10
    l3: int = 0
    cache_line: int = 64
    fma_units: int = 2
    dram_bandwidth: float = 20e9
    intrinsics: tuple[str, ...] = ()
    abi: str = ""
    memory_operands: bool = False
    kind: str = "cpu"
    language: str = ""
    max_threads: int = 1
    max_block: tuple[int, int, int] = (1, 1, 1)
    max_grid: tuple[int, int, int] = (1, 1, 1)
    shared_memory: int = 0
    warp: int = 1
    arch_name: str = ""
    max_bindings: int = 0
    max_binding: int = 0
    local_memory: int = 0
    registers: int = 0
    device: str = ""
    absent: tuple[str, ...] = ()
    max_parameters: int = 0

    @property
    def arch(self) -> str:
        """"x86_64", "aarch64", …: the first part of the triple."""
        return self.triple.split("-", 1)[0]

    @property
    def is_gpu(self) -> bool:
        return self.kind == "gpu"

    @property
    def binds(self) -> bool:
        """Whether kernels see memory as a few arrays of words."""
        return self.max_bindings > 0

    @property
    def device_name(self) -> str:
        """The runtime's name of the device that runs the kernels; "" for a CPU."""
        return self.device or self.language

    @property
    def is_x86(self) -> bool:
        return self.arch == "x86_64"

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` fit a vector register."""
        return max(1, self.vector_bits // bits)

    def has(self, intrinsic: str) -> bool:
        return intrinsic in self.intrinsics
