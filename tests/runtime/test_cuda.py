"""The runtime's CUDA device: on a stand-in for the driver, which runs kernels on the CPU and refuses what a driver would;
and on a real device where there is one."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tilewright
from tests import small_models
from tests.codegen.clike import stand_ins
from tests.device_cases import CASES, assert_close
from tests.small_models import inputs, reference
from tilewright.codegen.clike import nvrtc
from tilewright.core.errors import UserError
from tilewright.runtime import drivers, native
from tilewright.target import cuda, get_target

ROOT = native.NATIVE_FOLDER.parents[2]
PROLOGUE = """
import ctypes, pathlib, sys, threading
import numpy as np
import tilewright, tilewright.driver
from tests.codegen.clike import stand_ins
from tests import small_models
from tests.device_cases import CASES, assert_close
from tests.small_models import inputs, reference
from tilewright.codegen.clike.languages import CUDA
folder = pathlib.Path(sys.argv[1])
built = 0
def image(sources, target):
    global built
    built += 1
    place = folder / str(built)
    place.mkdir()
    return str(stand_ins.build("\\n".join([CUDA.prelude, *sources]), "cuda", place)).encode() + b"\\0"
tilewright.driver.device_image = image
driver = ctypes.CDLL("libcuda.so.1")
def calls(name):
    return driver.stand_in_calls(name.encode())
"""


def has_device() -> bool:
    try:
        return cuda.present_device()[0] > 0
    except UserError:
        return False


needs_device = pytest.mark.skipif(not has_device(), reason="no CUDA device")
without_device = pytest.mark.skipif(has_device(), reason="a CUDA device is here")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("driver")
    stand_ins.compile_cpp(stand_ins.FOLDER / "libcuda.cpp", folder / "libcuda.so.1")
    return folder


def on_driver(code: str, driver: Path, folder: Path, fail: str = "") -> str:
    """What a program prints in a process that finds the stand-in where the driver would be."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver), "STAND_IN_FAIL": fail}
    done = subprocess.run([sys.executable, "-c", PROLOGUE + textwrap.dedent(code), str(folder)], capture_output=True,
                          text=True, check=False, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_runs_become_graphs(driver: Path, tmp_path: Path) -> None:
    """The first run launches, the second is captured, later ones replay; outputs follow the inputs of each run."""
    on_driver("""
        m = small_models.convnet()
        made = tilewright.compile(m, target="sm_80")
        assert made.runs_here
        for k in range(4):
            feeds = inputs(m, seed=k)
            assert_close(made.run(feeds), reference(m, feeds))
            if k == 0:
                launches = calls("cuLaunchKernel")
                assert launches > 1 and calls("cuStreamBeginCapture_v2") == calls("cuGraphLaunch") == 0
        assert calls("cuLaunchKernel") == 2 * launches
        assert calls("cuStreamBeginCapture_v2") == calls("cuStreamEndCapture") == calls("cuGraphDestroy") == 1
        assert calls("cuGraphLaunch") == 3
        profile = made.profile(runs=2)   # three runs to warm up replay; each launch is measured by itself
        assert len(profile) == len(made.kernels) and calls("cuGraphLaunch") == 6
        assert calls("cuLaunchKernel") == 4 * launches
        made.close()
        assert calls("cuGraphExecDestroy") == 1
    """, driver, tmp_path)


def test_threads_saved_libraries_and_control_flow(driver: Path, tmp_path: Path) -> None:
    on_driver("""
        m = small_models.mlp()
        made = tilewright.compile(m, target="sm_80")
        wrong = []
        def work(seed):
            feeds = inputs(m, seed=seed)
            want = reference(m, feeds)
            for _ in range(5):
                try:
                    assert_close(made.run(feeds), want)
                except BaseException as error:
                    wrong.append(error)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not wrong, wrong
        made.save(folder / "net.so")
        with tilewright.load(folder / "net.so") as loaded:
            feeds = inputs(m, seed=9)
            for _ in range(3):
                assert_close(loaded.run(feeds), reference(m, feeds))
        del made
        replayed = calls("cuGraphLaunch")
        for name in ("while_loop", "branches", "swaps"):   # what the host reads in between is no graph
            m = CASES[name]()
            feeds = inputs(m)
            want = tilewright.compile(m).run(feeds)
            with tilewright.compile(m, target="sm_80") as made:
                for _ in range(3):
                    assert_close(made.run(feeds), want)
        assert calls("cuGraphLaunch") == replayed
    """, driver, tmp_path)


@pytest.mark.parametrize(("fail", "code"), [("cuInit=100", "device-missing"), ("cuMemAlloc_v2=2", "run-memory"),
                                            ("cuModuleLoadData=209", "run-device"), ("cuLaunchKernel=719", "run-device"),
                                            ("cuStreamEndCapture=901", "run-device")])
def test_what_the_driver_refuses(fail: str, code: str, driver: Path, tmp_path: Path) -> None:
    said = on_driver("""
        m = small_models.mlp()
        try:
            made = tilewright.compile(m, target="sm_80")
            for _ in range(3):
                made.run(inputs(m))
        except tilewright.UserError as error:
            print(error)
    """, driver, tmp_path, fail)
    assert code in said and ("another generation" in said) == (fail == "cuModuleLoadData=209")
    if "Kernel" in fail:
        assert "as the stand-in was told (CUDA_ERROR_STAND_IN, error 719)" in said


def test_the_device_that_is_there_is_a_target(driver: Path, tmp_path: Path) -> None:
    said = on_driver('t = tilewright.driver.get_target("cuda"); print(t.name, t.cores, t.language)', driver, tmp_path)
    assert said == "sm_80 7 cuda\n"


@without_device
def test_no_driver_here() -> None:
    with pytest.raises(UserError, match="device-missing") as error:
        get_target("cuda")
    assert "sm_80" in str(error.value)
    assert "libcuda.so.1" in drivers.problem("cuda")


@without_device
@pytest.mark.skipif(not nvrtc.is_there(), reason="NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
def test_a_model_without_its_device(tmp_path: Path) -> None:
    """It is compiled and saved; what would run it says what is missing, here and where the library is loaded."""
    made = tilewright.compile(small_models.mlp(), target="sm_75")
    assert not made.runs_here
    with pytest.raises(UserError, match="device-missing") as error:
        made.run({})
    assert "libcuda.so.1" in str(error.value) and "nvidia-smi" in str(error.value)
    made.save(tmp_path / "net.so")
    with pytest.raises(UserError, match=r"device-missing.*libcuda\.so\.1"):
        tilewright.load(tmp_path / "net.so")


@needs_device
@pytest.mark.parametrize("case", CASES)
def test_on_a_device(case: str) -> None:
    m = CASES[case]()
    with tilewright.compile(m, target="cuda") as made:
        for seed in range(3):
            feeds = inputs(m, seed=seed)
            assert_close(made.run(feeds), reference(m, feeds), 1e-4)
