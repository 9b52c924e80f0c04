"""Saved libraries: written whole or not at all, loaded, checked, called from C without Python."""
from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.build import SCALE, SCALE_CONSTS, SCALE_MODEL, compile_c
from tilewright.core.errors import UserError
from tilewright.runtime import artifact, native, toolchain
from tilewright.runtime.cache import Cache

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "run_model.c"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def scale_object() -> bytes:
    return compile_c(SCALE)


@pytest.fixture
def saved(tmp_path, cache, scale_object) -> Path:
    path = tmp_path / "net.so"
    artifact.save(path, [scale_object], SCALE_MODEL, SCALE_CONSTS, cache=cache)
    return path


def test_load_runs_and_says_what_it_is(saved):
    start = time.perf_counter()
    model = artifact.load(saved, threads=2)
    assert time.perf_counter() - start < 0.1
    assert model.descriptor == SCALE_MODEL
    x = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(model.run([x])[0], 2 * x + 1)
    assert model.threads == 2
    model.close()
    with pytest.raises(UserError, match="model-closed"):
        model.run([x])


def test_two_libraries_in_one_process_keep_apart(tmp_path, cache, scale_object):
    x = np.ones(1000, np.float32)
    models = []
    for i in range(2):
        path = tmp_path / f"net{i}.so"
        artifact.save(path, [scale_object], SCALE_MODEL, np.array([i, 5], np.float32), cache=cache)
        models.append(artifact.load(path, threads=2))
    assert [m.run([x])[0][0] for m in models] == [5, 6]


def test_outputs_outlive_the_model_and_reloading_works(saved):
    for _ in range(3):
        y = artifact.load(saved).run([np.ones(1000, np.float32)])[0]
        assert y.sum() == 3000


def test_c_program_without_python(saved):
    program = saved.parent / "run_model"
    assert len(EXAMPLE.read_text().splitlines()) < 60
    shutil.copy(EXAMPLE, saved.parent)
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "run_model.c", "./net.so", "-o", str(program)],
                   cwd=saved.parent, check=True)
    needs = subprocess.run(["ldd", str(program)], cwd=saved.parent, capture_output=True, text=True, check=True).stdout
    assert "python" not in needs
    result = subprocess.run([str(program)], cwd=saved.parent, capture_output=True, text=True, check=True, env={})
    assert result.stdout == "y: 3 3 3 3 3 3 3 3\n"
    broken = subprocess.run([str(program)], cwd=saved.parent, capture_output=True, text=True, check=False,
                            env={"TILEWRIGHT_THREADS": "none"})
    assert broken.returncode == 1 and "TILEWRIGHT_THREADS" in broken.stderr


def test_two_models_link_into_one_cxx_program(tmp_path, cache, scale_object):
    for name, factor in (("first", 2), ("second", 3)):
        artifact.save(tmp_path / f"{name}.so", [scale_object], SCALE_MODEL, np.array([factor, 0], np.float32),
                      cache=cache)
    (tmp_path / "main.cc").write_text("""
        #include <cstdio>
        #include "first.h"
        #include "second.h"
        int main() {
          static float x[1000] = {1}, a[1000], b[1000];
          const void *in[] = {x}; void *out_a[] = {a}, *out_b[] = {b};
          tw_instance *first = first_open(), *second = second_open();
          if (first_run(first, in, out_a) || second_run(second, in, out_b)) return 1;
          std::printf("%g %g\\n", a[0], b[0]);
          first_close(first); second_close(second);
        }""")
    subprocess.run(["c++", "main.cc", "./first.so", "./second.so", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "2 3\n"


def test_only_the_models_own_symbols_are_exported(saved):
    listing = subprocess.run(["nm", "-D", "--defined-only", str(saved)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert {"net_open", "net_run", "tilewright_runtime"} <= names
    assert all(name.startswith("net_") or name == "tilewright_runtime" for name in names)


def test_missing_cpu_feature_is_named_before_any_code_runs(tmp_path, cache):
    absent = [name for name in native.cpu_feature_bits() if name not in native.host_features()]
    if not absent:
        pytest.skip("this CPU has every feature there is")
    crash = compile_c('#include "tilewright_abi.h"\n'
                      "int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) { __builtin_trap(); }")
    path = tmp_path / "net.so"
    artifact.save(path, [crash], replace(SCALE_MODEL, cpu_features=("sse3", absent[0])), SCALE_CONSTS, cache=cache)
    with pytest.raises(UserError) as caught:
        artifact.load(path)
    assert caught.value.code == "artifact-cpu"
    assert absent[0] in caught.value.message and "sse3" not in caught.value.message


def test_runtime_in_a_library_uses_no_avx(saved):
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(saved)], capture_output=True, text=True,
                          check=True).stdout
    assert "<tw_open>" in code
    assert "%ymm" not in code and "%zmm" not in code


def _corrupt(data: bytes, how: str) -> bytes:
    if how == "text":
        return b"not a library\n" * 10
    if how == "empty":
        return b""
    if how == "half":
        return data[:len(data) // 2]
    if how == "tail":
        return data[:-64]
    if how == "machine":
        return data[:18] + b"\xb7\x00" + data[20:]
    return data[:64]


@pytest.mark.parametrize(("how", "code"), [("text", "artifact-invalid"), ("empty", "artifact-invalid"),
                                           ("half", "artifact-invalid"), ("tail", "artifact-invalid"),
                                           ("header", "artifact-invalid"), ("machine", "artifact-cpu")])
def test_broken_files_are_refused(saved, how, code):
    broken = saved.with_name("broken.so")
    broken.write_bytes(_corrupt(saved.read_bytes(), how))
    with pytest.raises(UserError) as caught:
        artifact.load(broken)
    assert caught.value.code == code
    assert str(broken) in str(caught.value)


def test_foreign_library_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    source = tmp_path / "foreign.c"
    source.write_text(f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) '
                      f'{{ fclose(fopen("{marker}", "w")); }}')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "foreign.so"), str(source)], check=True)
    with pytest.raises(UserError, match="artifact-invalid"):
        artifact.load(tmp_path / "foreign.so")
    assert not marker.exists()


def test_missing_file():
    with pytest.raises(UserError, match="artifact-missing"):
        artifact.load("/nonexistent/net.so")


def test_other_runtime_version_is_refused(saved):
    library = saved.with_name("old.so")
    source = saved.with_name("old.c")
    source.write_text("int table[64] = {999, 8}; int *tilewright_runtime(void) { return table; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    with pytest.raises(UserError, match="artifact-version"):
        artifact.load(library)


# ---- saving that fails leaves what was there ----
def test_full_disk_leaves_nothing_half_written(tmp_path, cache, scale_object):
    """A file size limit stands in for the full disk: both make write() fail."""
    path = tmp_path / "net.so"
    path.write_text("the old one")
    script = (f"import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
              f"resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
              "import numpy as np\n"
              f"from pathlib import Path\n"
              f"from tests.runtime.build import SCALE_MODEL\n"
              f"from tilewright.core.errors import UserError\n"
              f"from tilewright.runtime import artifact\n"
              f"from tilewright.runtime.cache import Cache\n"
              f"try: artifact.save({str(path)!r}, [Path({str(tmp_path)!r}, 'o').read_bytes()], SCALE_MODEL,\n"
              f"                   np.zeros(1 << 20, np.float32), cache=Cache(Path({str(cache.folder)!r})))\n"
              f"except UserError as error: sys.exit(error.code)\n")
    (tmp_path / "o").write_bytes(scale_object)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parents[2])
    assert result.stderr.strip() == "save-failed"
    assert path.read_text() == "the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.so", "o"]


def test_unresolved_symbol_and_missing_folder(tmp_path, cache):
    bad = compile_c('#include "tilewright_abi.h"\nvoid nowhere(void);\n'
                    "int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) { nowhere(); return 0; }")
    with pytest.raises(UserError, match="nowhere") as caught:
        artifact.save(tmp_path / "net.so", [bad], SCALE_MODEL, cache=cache)
    assert caught.value.code == "save-failed"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="save-failed"):
        artifact.save(tmp_path / "absent" / "net.so", [bad], SCALE_MODEL, cache=cache)


def test_host_calls_are_refused_by_name(tmp_path, cache, scale_object):
    model = replace(SCALE_MODEL, host_count=1, metadata={"host_calls": ["my_operator"]})
    with pytest.raises(UserError, match="my_operator") as caught:
        artifact.save(tmp_path / "net.so", [scale_object], model, cache=cache)
    assert caught.value.code == "save-host-call"


def test_no_compiler(tmp_path, cache, scale_object, monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ziglang") as caught:
        artifact.save(tmp_path / "net.so", [scale_object], SCALE_MODEL, cache=cache)
    assert caught.value.code == "no-compiler"


def test_bad_names(tmp_path, cache, scale_object):
    for stem in ("---", "tw"):
        with pytest.raises(UserError, match="save-name"):
            artifact.save(tmp_path / f"{stem}.so", [scale_object], SCALE_MODEL, cache=cache)


def test_names_and_metadata_survive_c(tmp_path, cache, scale_object):
    odd = 'a "quoted" \\ name*/ ??/ \n π'
    model = replace(SCALE_MODEL, name=odd, kernels=(odd,), metadata={"odd": odd, "n": [1, 2.5, None]})
    artifact.save(tmp_path / "9 nets.so", [scale_object], model, SCALE_CONSTS, cache=cache)
    assert artifact.load(tmp_path / "9 nets.so").descriptor == model
    (tmp_path / "use.c").write_text('#include "9 nets.h"\nint main(void) { return m9_nets_input_count() - 1; }')
    subprocess.run(["cc", "use.c", "./9 nets.so", "-o", "use"], cwd=tmp_path, check=True)
    subprocess.run(["./use"], cwd=tmp_path, check=True)


def test_interrupted_save_leaves_nothing(tmp_path, cache, scale_object, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "run_compiler", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(tmp_path / "net.so", [scale_object], SCALE_MODEL, cache=cache)
    assert list(tmp_path.iterdir()) == []


def test_runtime_is_compiled_once(tmp_path, cache, scale_object, monkeypatch):
    artifact.save(tmp_path / "net.so", [scale_object], SCALE_MODEL, cache=cache)

    def refuse(*_args):
        raise AssertionError("compiled again")

    monkeypatch.setattr(toolchain, "run_compiler", refuse)
    artifact.save(tmp_path / "net.so", [scale_object], SCALE_MODEL, cache=cache)


def test_weights_from_a_file_are_page_aligned_and_read_only(tmp_path, cache):
    source = compile_c('#include "tilewright_abi.h"\n'
                       "int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {\n"
                       "  float *y = out[0]; const float *c = (const float *)ctx->consts;\n"
                       "  for (int i = 0; i < 1000; ++i) y[i] = c[i + 5000];\n"
                       "  return (intptr_t)c % 4096 ? TW_ERROR_VALUE : TW_OK; }")
    weights = np.arange(6000, dtype=np.float32)
    weights.tofile(tmp_path / "weights.bin")
    artifact.save(tmp_path / "net.so", [source], SCALE_MODEL, tmp_path / "weights.bin", cache=cache)
    y = artifact.load(tmp_path / "net.so").run([np.zeros(1000, np.float32)])[0]
    np.testing.assert_array_equal(y, weights[5000:])


def test_ziglang_links_where_there_is_no_compiler_and_for_other_processors(tmp_path, cache, scale_object, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    artifact.save(tmp_path / "net.so", [scale_object], SCALE_MODEL, SCALE_CONSTS, cache=cache)
    assert artifact.load(tmp_path / "net.so").run([np.ones(1000, np.float32)])[0][0] == 3
    triple = "aarch64-unknown-linux-gnu" if platform.machine() == "x86_64" else "x86_64-unknown-linux-gnu"
    command = [*toolchain.find_compiler(triple), "-O2", "-fPIC", f"-I{native.NATIVE_FOLDER}", "-c", "-o"]
    (tmp_path / "scale.c").write_text(SCALE)
    subprocess.run([*command, str(tmp_path / "scale.o"), str(tmp_path / "scale.c")], check=True)
    artifact.save(tmp_path / "other.so", [(tmp_path / "scale.o").read_bytes()], SCALE_MODEL, SCALE_CONSTS,
                  triple=triple, cache=cache)
    with pytest.raises(UserError, match="was made for") as caught:
        artifact.load(tmp_path / "other.so")
    assert caught.value.code == "artifact-cpu"
