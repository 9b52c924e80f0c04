"""Odd numbers of threads, quotas and plain processors: everything runs, right, and says what it chose."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import tilewright
from tests import small_models
from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.target import host
from tilewright.tools import doctor
from tilewright.tools.commands import app

ROOT = Path(__file__).parents[2]
X86 = pytest.mark.skipif(not host.native().is_x86, reason="needs x86-64")


@pytest.fixture
def net(tmp_path) -> Path:
    onnx.save(small_models.convnet(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def right(made: tilewright.Model, name: str) -> None:
    m = small_models.ALL[name]()
    feeds = small_models.inputs(m, 1)
    for got, want in zip(made.run(feeds), small_models.reference(m, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# ---- threads -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", (-1, 1025))
def test_numbers_of_threads_that_cannot_be(net, threads):
    with pytest.raises(UserError) as refused:
        tilewright.compile(net, threads=threads)
    assert refused.value.code == "threads-invalid"
    for command in ("run", "bench", "profile", "compile"):
        result = CliRunner().invoke(app, [command, str(net), "--threads", str(threads), "--json"])
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert json.loads(result.stdout)["error"]["code"] == "threads-invalid"
    with tilewright.compile(net, threads=1) as made, pytest.raises(UserError) as refused:
        made.threads = threads
    assert refused.value.code == "threads-invalid"


def test_no_threads_means_all_that_there_are(net):
    with tilewright.compile(net, threads=0) as made:
        assert made.threads == native.default_threads() and f"{made.threads} thread" in repr(made)
        right(made, "convnet")
        made.threads = 1
        assert "1 thread (" in repr(made)
        made.threads = 0
        assert made.threads == native.default_threads()
    said = json.loads(CliRunner().invoke(app, ["compile", str(net), "--threads", "0", "--json"]).stdout)
    assert said["threads"] == native.default_threads()
    result = CliRunner().invoke(app, ["run", str(net), "--threads", "0"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ("convnet", "attention", "nested_loops"))
def test_far_more_threads_than_cores(name):
    with tilewright.compile(small_models.ALL[name](), threads=64) as made:
        assert made.threads == 64
        right(made, name)
        many = made.run(small_models.inputs(small_models.ALL[name](), 2))
        made.threads = 1
        for a, b in zip(many, made.run(small_models.inputs(small_models.ALL[name](), 2)), strict=True):
            np.testing.assert_array_equal(a, b)


# ---- a quota -----------------------------------------------------------------------------------------------------------
def under_quota(folder: Path, limit: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line where /sys/fs/cgroup holds one limit, made up: in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    (folder / "cgroup").mkdir(exist_ok=True)
    (folder / "cgroup" / "cpu.max").write_text(limit)
    (folder / "cache").mkdir(exist_ok=True)
    script = f"mount --bind {folder}/cgroup /sys/fs/cgroup || exit 77; exec {sys.executable} -m tilewright {' '.join(words)}"
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("this system allows no mount namespaces")
    return result


def test_half_a_core_by_quota(net, tmp_path):
    said = json.loads(under_quota(tmp_path, "50000 100000\n", "doctor", "--json").stdout)
    assert said["threads"]["a model uses"].startswith("1 ")
    if doctor.config_cores() > 1:
        assert "the control group's quota" in said["threads"]["a model uses"]
    m = small_models.convnet()
    feeds = small_models.inputs(m, 3)
    np.savez(tmp_path / "in.npz", **feeds)
    result = under_quota(tmp_path, "50000 100000\n", "run", str(net), "--input", f"{tmp_path}/in.npz", "-o",
                         f"{tmp_path}/out.npz")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], small_models.reference(m, feeds)[0], rtol=1e-4, atol=1e-5)


def test_no_limit_in_the_group_leaves_the_affinity(tmp_path):
    said = json.loads(under_quota(tmp_path, "max 100000\n", "doctor", "--json").stdout)
    assert said["threads"]["a model uses"].startswith(f"{doctor.config_cores()} ")


def test_one_core_by_affinity():
    if not hasattr(os, "sched_setaffinity") or doctor.config_cores() < 2:
        pytest.skip("needs a second core to leave out")
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, {{{one}}}); from tilewright.tools import cli; cli.app()"
    said = subprocess.run([sys.executable, "-c", script, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True,
                          check=False).stdout
    assert json.loads(said)["threads"]["a model uses"].startswith("1 (the affinity")


# ---- plain processors --------------------------------------------------------------------------------------------------
@X86
@pytest.mark.parametrize("name", ("mlp", "convnet", "attention", "while_loop", "integers"))
def test_plain_x86_64(name):
    with tilewright.compile(small_models.ALL[name](), target="x86-64", threads=2) as made:
        right(made, name)


@X86
def test_plain_x86_64_has_no_instruction_of_a_later_level(net):
    """Neither in a kernel nor by a flag of the artifact."""
    result = CliRunner().invoke(app, ["inspect", str(net), "--target", "x86-64", "--asm", "1"])
    assert result.exit_code == 0 and "xmm" in result.stdout
    assert not [word for word in ("ymm", "zmm", "vfmadd", "vmulps", "pinsr", "roundps") if word in result.stdout]
    result = CliRunner().invoke(app, ["run", str(net), "--target", "x86-64", "--json"])
    assert result.exit_code == 0, result.output
