"""Models for machines other than this one: compiled and saved here, run there (64-bit ARM under QEMU), refused here."""
from __future__ import annotations

import dataclasses
import functools
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests import small_models
from tests.small_models import inputs
from tilewright.core.errors import UserError
from tilewright.graph.interpret import run as interpret
from tilewright.runtime import native, toolchain
from tilewright.target import get_target, host
from tilewright.target.presets import PRESETS
from tilewright.tools import inspect

FOREIGN = "x86-64-v3" if host.native().arch == "aarch64" else "aarch64-neon"
EXAMPLE = Path(__file__).parents[1] / "examples" / "c" / "run_model.c"
CROSS = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
on_arm = pytest.mark.skipif(CROSS is None or QEMU is None, reason="needs aarch64-linux-gnu-gcc and qemu-aarch64 "
                            "(Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)")


def encoder() -> onnx.ModelProto:
    """The transformer's block with rows of numbers in place of tokens, and one result per row."""
    m = small_models.attention()
    m.graph.node.remove(m.graph.node[0])
    m.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 12, 32]))
    return m


ON_ARM = {"mlp": small_models.mlp, "convnet": small_models.convnet, "encoder": encoder}


def executed(library: Path, threads: int, cpu: str = "max") -> subprocess.CompletedProcess[str]:
    """The example in C with the library, under QEMU."""
    folder = library.parent
    shutil.copy(EXAMPLE, folder)
    subprocess.run([str(CROSS), "-Wall", "-Werror", "run_model.c", "./net.so", "-o", "run_model"], cwd=folder, check=True)
    root = subprocess.run([str(CROSS), "-print-sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    libraries = root if len(root) > 1 else "/usr/aarch64-linux-gnu"
    return subprocess.run([str(QEMU), "-cpu", cpu, "-L", libraries, "./run_model"], cwd=folder, capture_output=True,
                          text=True, check=False, timeout=60, env={"TILEWRIGHT_THREADS": str(threads)})


# ---- refusals --------------------------------------------------------------------------------------------------------
def test_what_cannot_run_here() -> None:
    """Everything that would run the code says so, by name; the rest works."""
    proto = small_models.mlp()
    made = tilewright.compile(proto, target=FOREIGN)
    feeds = inputs(proto)
    for attempt in (lambda: made(feeds["x"]), lambda: made.run(feeds), lambda: made.benchmark(feeds), lambda: made.profile(),
                    lambda: made.verify(), lambda: made.intermediates(), lambda: made.threads, lambda: made.executable,
                    lambda: tilewright.compile(proto, target=FOREIGN, verify=True)):
        with pytest.raises(UserError, match=f"{FOREIGN} cannot run on this machine: its code is for") as caught:
            attempt()
        assert caught.value.code == "target-not-here"
    assert [o.shape for o in made.outputs] == [(4, 10)] and made.memory.packed > 0 and len(made.kernels) == 3
    assert all(report.replays for report in inspect.schedules(made))
    made.close()


@pytest.mark.skipif(not host.native().is_x86, reason="needs x86-64")
def test_features_that_this_cpu_has_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A higher level than this machine's is another machine."""
    there = native.host_features()
    monkeypatch.setattr(native, "host_features", lambda: [f for f in there if f not in ("avx512f", "avx512bw")])
    made = tilewright.compile(small_models.mlp(), target="x86-64-v4")
    with pytest.raises(UserError, match=r"this CPU has no avx512bw, avx512f"):
        made(np.zeros((4, 16), np.float32))
    assert made.save(tmp_path / "net.so").exists()


def test_features_of_every_processor_are_known() -> None:
    """A library made here for another machine says what it needs."""
    bits = native.cpu_feature_bits()
    assert {"neon", "dotprod", "i8mm", "avx2", "avx512f"} <= set(bits) and len(set(bits.values())) == len(bits)


# ---- saving ----------------------------------------------------------------------------------------------------------
def test_cross_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's cross compiler by its usual name, else Zig's, else the name of what is missing."""
    triple = "riscv64-unknown-linux-gnu"
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}" if name == "riscv64-linux-gnu-gcc" else None)
    assert toolchain.find_compiler(triple) == ["/bin/riscv64-linux-gnu-gcc"]
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: object())
    assert toolchain.find_compiler(triple)[-2:] == ["-target", "riscv64-linux-gnu"]
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no-compiler.*riscv64(.|\n)*install riscv64-linux-gnu-gcc"):
        toolchain.find_compiler(triple)


@pytest.mark.parametrize("name, machine, flags", (("riscv64", 243, 0x5), ("mips64el", 8, None), ("aarch64-neon", 183, 0)))
def test_objects_of_every_target(name: str, machine: int, flags: int | None) -> None:
    """ELF's numbers of the processor and of its ABI (RISC-V: compressed code, doubles in registers)."""
    made = tilewright.compile(small_models.convnet(), target=name)
    assert made._objects
    for data in made._objects:
        assert data[:6] == b"\x7fELF\x02\x01" and struct.unpack_from("<H", data, 18)[0] == machine
        assert flags is None or struct.unpack_from("<I", data, 48)[0] == flags


# ---- on ARM ----------------------------------------------------------------------------------------------------------
@functools.cache
def wanted(name: str) -> list[Any]:
    """The first numbers of each output for inputs of ones, by the graph interpreter."""
    made = tilewright.compile(ON_ARM[name](), target="aarch64-neon")
    assert made.graph is not None
    feeds = {i.name: np.ones(i.shape, np.float32) for i in made.inputs}
    return [np.asarray(y).ravel()[:8] for y in interpret(made.graph, feeds)]


@on_arm
@pytest.mark.parametrize("name", ON_ARM)
def test_arm(name: str, tmp_path: Path) -> None:
    """As the interpreter, to what the example prints; the same with four threads as with one."""
    made = tilewright.compile(ON_ARM[name](), target="aarch64-neon")
    made.save(tmp_path / "net.so")
    said = executed(tmp_path / "net.so", threads=1)
    assert said.returncode == 0, said.stderr
    rows = [line.split(":")[1].split() for line in said.stdout.splitlines()]
    for row, want in zip(rows, wanted(name), strict=True):
        np.testing.assert_allclose(np.array(row, np.float64), want, rtol=2e-5, atol=2e-6 * float(np.abs(want).max()))
    assert executed(tmp_path / "net.so", threads=4).stdout == said.stdout


@on_arm
def test_arm_says_what_is_missing(tmp_path: Path) -> None:
    target = dataclasses.replace(get_target("aarch64-neon"), features=("neon", "dotprod", "i8mm"))
    tilewright.compile(small_models.mlp(), target=target).save(tmp_path / "net.so")
    said = executed(tmp_path / "net.so", threads=1, cpu="cortex-a57")
    assert said.returncode == 1 and "needs a CPU with dotprod i8mm" in said.stderr
    assert executed(tmp_path / "net.so", threads=1).returncode == 0


@on_arm
def test_the_runtime_has_no_warnings_on_arm(tmp_path: Path) -> None:
    for source in native.NATIVE_FOLDER.glob("*.c"):
        subprocess.run([str(CROSS), "-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-DTW_SAVED_MODEL", "-c",
                        "-o", str(tmp_path / "out.o"), str(source)], check=True)


def test_presets_are_complete() -> None:
    """What code generation asks of a target."""
    for target in PRESETS.values():
        assert target.triple.count("-") >= 2 and target.cpu and target.lanes(32) * 32 == target.vector_bits
        assert target.memory_operands == target.is_x86
        assert target.has("fma") == any(f in target.features for f in ("fma", "neon", "f")) or target.arch == "mips64el"
