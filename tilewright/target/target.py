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

    @property
    def arch(self) -> str:
        """"x86_64", "aarch64", …: the first part of the triple."""
        return self.triple.split("-", 1)[0]

    @property
    def is_x86(self) -> bool:
        return self.arch == "x86_64"

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` fit a vector register."""
        return max(1, self.vector_bits // bits)

    def has(self, intrinsic: str) -> bool:
        return intrinsic in self.intrinsics
