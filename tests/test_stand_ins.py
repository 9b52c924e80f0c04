"""Every default schedule in Metal, CUDA C and HIP: the kernels run on the CPU, through stand-ins for libraries,
and give what the CPU target gives; those in HIP are also machine code of AMD's processors."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import tilewright
from examples.resnet18 import resnet18
from tests.codegen.clike.stand_ins import FOLDER, on_cpu, source_of
from tests.device_cases import CASES, assert_close
from tests.small_models import inputs, model
from tilewright.codegen.clike import nvrtc
from tilewright.core.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.mark.parametrize(("case", "target"), [*((c, t) for c in CASES for t in ("metal", "sm_80")), ("product", "hip"),
                                              ("rows", "hip"), ("functions", "hip")])
def test_kernels_run_as_cpp(case: str, target: str, tmp_path: Path) -> None:
    if target == "sm_80" and not nvrtc.is_there():
        pytest.skip("NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
    m = CASES[case]()
    feeds = inputs(m)
    want = tilewright.compile(m).run(feeds)
    made = tilewright.compile(m, target=target)
    with on_cpu(made, tmp_path) as executable:
        assert_close(executable.run([feeds[i.name] for i in made.inputs]), want)


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
@pytest.mark.parametrize("case", CASES)
def test_kernels_in_hip_are_code_of_amd_processors(case: str, tmp_path: Path) -> None:
    """Without ROCm: AMD's library of mathematical functions stays outside."""
    made = tilewright.compile(CASES[case](), target="gfx90a")
    (tmp_path / "kernels.hip").write_text(source_of(made))
    command = ["clang", "-x", "hip", "--cuda-device-only", "-nogpulib", "-nogpuinc", "--offload-arch=gfx90a", "-O2", "-w",
               f"-I{FOLDER}", "-S", "-o", "kernels.s", "kernels.hip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "unsupported HIP gpu architecture" in done.stderr or "No available targets" in done.stderr:
        pytest.skip("this clang makes no code for gfx90a")
    assert done.returncode == 0, done.stderr[:3000]
    text = (tmp_path / "kernels.s").read_text()
    assert text.count(".amdhsa_kernel ") == made.descriptor.image.count(b"__global__") > 0


def test_what_no_runtime_opens(tmp_path: Path) -> None:
    """Models in Metal and HIP are compiled and looked at; running and saving say what is missing."""
    m = CASES["mlp"]()
    for target, word in (("metal", b"[[threadgroup_position_in_grid]]"), ("gfx1100", b"hip_runtime.h")):
        made = tilewright.compile(m, target=target)
        assert word in made.descriptor.image and not made.runs_here and len(made.kernels) == 3
        with pytest.raises(UserError, match="target-not-here") as caught:
            made.run(inputs(m))
        assert f"opens no {made.target.language} devices" in str(caught.value)
        with pytest.raises(UserError, match="save-device"):
            made.save(tmp_path / "net.so")
        assert not list(tmp_path.iterdir())


def test_metal_has_no_double() -> None:
    m = model("f (double[4] x) => (double[4] y) { y = Neg(x) }")
    with pytest.raises(UserError, match="device-dtype"):
        tilewright.compile(m, target="metal")


def test_metal_takes_31_parameters() -> None:
    names = [f"x{k}" for k in range(31)]
    inputs_of = ", ".join([f"float[4] {name}" for name in names])
    m = model(f"f ({inputs_of}) => (float[124] y) {{ y = Concat<axis = 0>({', '.join(names)}) }}")
    with pytest.raises(UserError, match="kernel-limit") as error:
        tilewright.compile(m, target="metal")
    assert "wants 32 parameters; metal has 31" in str(error.value)


def test_a_barrier_that_some_threads_miss_is_seen(tmp_path: Path) -> None:
    """The stand-in itself: a source whose threads part ways fails, one whose barrier is taken away is wrong."""
    made = tilewright.compile(CASES["product"](), target="metal")
    (kernel,) = made.stages.kernels.values()
    feeds = inputs(CASES["product"]())
    want = tilewright.compile(CASES["product"]()).run(feeds)
    barrier = "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);"
    assert kernel.source.count(barrier) == 2
    whole = kernel.source
    for broken in (f"if (tw_thread.x != 3) {barrier}", ""):
        kernel.source = broken.join(whole.rsplit(barrier, 1))
        folder = tmp_path / str(len(broken))
        folder.mkdir()
        with on_cpu(made, folder) as executable:
            if broken:
                with pytest.raises(UserError, match="run-device"):
                    executable.run([feeds["x"]])
            else:
                with pytest.raises(AssertionError):
                    assert_close(executable.run([feeds["x"]]), want)


@pytest.mark.long
@pytest.mark.parametrize("target", ["metal", "sm_80"])
def test_a_whole_resnet(target: str, tmp_path: Path) -> None:
    m = resnet18()
    feeds = inputs(m)
    want = tilewright.compile(m).run(feeds)
    with on_cpu(tilewright.compile(m, target=target), tmp_path) as executable:
        assert_close(executable.run([feeds["image"]]), want)
