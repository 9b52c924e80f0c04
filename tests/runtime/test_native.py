"""What the runtime finds out about the machine: quotas (from made-up files), affinity, features; and the ABI's mirror."""
from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.build import compile_c
from tilewright.runtime import native


def quota(folder: Path, membership: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return native.cgroup_quota(str(folder / "cgroup"), str(folder / "membership"))


@pytest.mark.parametrize(("limit", "cpus"), [
    ("max 100000\n", 0), ("200000 100000\n", 2), ("250000 100000\n", 2), ("50000 100000\n", 1), ("1000 100000\n", 1),
    ("garbage\n", 0), ("", 0), ("-1 100000\n", 0), ("100000 0\n", 0), ("99999999999999 1\n", 1024)])
def test_version_2(tmp_path, limit, cpus):
    assert quota(tmp_path, "0::/\n", {"cpu.max": limit}) == cpus


def test_version_2_takes_the_tightest_ancestor(tmp_path):
    files = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "800000 100000\n", "a/b/c/cpu.max": "max 100000\n"}
    assert quota(tmp_path, "0::/a/b/c\n", files) == 3


def test_group_that_is_not_mounted_here_falls_back_to_the_mount(tmp_path):
    assert quota(tmp_path, "0::/docker/0123\n", {"cpu.max": "400000 100000\n"}) == 4


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
def test_version_1(tmp_path, mount):
    files = {f"{mount}/job/cpu.cfs_quota_us": "350000\n", f"{mount}/job/cpu.cfs_period_us": "100000\n",
             f"{mount}/cpu.cfs_quota_us": "-1\n", f"{mount}/cpu.cfs_period_us": "100000\n"}
    membership = f"12:cpuset:/other\n4:{mount}:/job\n1:name=systemd:/x\n0::/\n"
    assert quota(tmp_path, membership, files) == 3


def test_version_1_ignores_other_controllers(tmp_path):
    files = {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}
    assert quota(tmp_path, "4:cpuset,cpuacct:/job\n", files) == 0


def test_no_files_and_broken_lines(tmp_path):
    assert native.cgroup_quota(str(tmp_path), str(tmp_path / "absent")) == 0
    assert quota(tmp_path, "no colons\n:\n::\n\n" + "0::/" + "x" * 5000 + "\n", {"cpu.max": "100000 100000\n"}) in (0, 1)


def test_default_threads_follow_the_affinity():
    script = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
              "from tilewright.runtime.native import default_threads; print(default_threads())")
    environment = {k: v for k, v in os.environ.items() if k != "TILEWRIGHT_THREADS"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                            env=environment, cwd=Path(__file__).parents[2])
    assert result.stdout == "1\n"


def test_features_agree_with_the_kernel():
    info = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    if flags is None:
        pytest.skip("no x86 flags here")
    kernel_names = {"sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm", "sse3": "pni",
                    "pclmul": "pclmulqdq", "sha": "sha_ni", "avxvnni": "avx_vnni", "amx-tile": "amx_tile",
                    "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "amx-fp16": "amx_fp16", "avxifma": "avx_ifma",
                    "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
                    "avx512vbmi2": "avx512_vbmi2", "avx512bitalg": "avx512_bitalg",
                    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512vp2intersect": "avx512_vp2intersect"}
    unknown_to_kernel = {"avxvnniint8", "avxneconvert"}
    present = set(flags.group(1).split())
    ours = set(native.host_features()) - unknown_to_kernel
    names = set(native.cpu_feature_bits()) - unknown_to_kernel
    assert ours == {name for name in names if kernel_names.get(name, name) in present}


def test_python_mirrors_the_header():
    """Sizes, offsets and codes of the ctypes structs are those that the C compiler sees."""
    header = (native.NATIVE_FOLDER / "tilewright.h").read_text()
    codes = {name.lower(): int(code) for name, code in re.findall(r"TW_([A-Z]\w*) = (\d+)[,\s]", header)
             if not name.startswith("ERROR") and name != "OK"}
    assert codes == native.DTYPE_CODES
    constants = {"ABI_VERSION": native.ABI_VERSION, "MAX_RANK": native.MAX_RANK, "ALIGNMENT": native.ALIGNMENT,
                 "PROFILE": native.PROFILE, "TAP": native.TAP, "POISON": native.POISON}
    checks = [f'_Static_assert(TW_{name} == {value}, "{name}");' for name, value in constants.items()]
    for name, struct in (("tw_model", native.Model), ("tw_tensor_info", native.TensorInfo),
                         ("tw_result", native.Result), ("tw_runtime", native._Table)):
        checks.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        checks += [f'_Static_assert(offsetof({name}, {field}) == {getattr(struct, field).offset}, "{name}.{field}");'
                   for field, *_ in struct._fields_]
    assert compile_c('#include "runtime.h"\n' + "\n".join(checks))


def test_every_function_for_generated_code_has_an_address():
    addresses = native.symbol_addresses()
    assert set(addresses) == set(native.GENERATED_CODE_CALLS) and all(addresses.values())
    declared = re.findall(r"^\w[\w *]*?\b(tw_\w+)\(tw_ctx", (native.NATIVE_FOLDER / "tilewright_abi.h").read_text(),
                          re.MULTILINE)
    assert set(declared) == set(native.GENERATED_CODE_CALLS)
