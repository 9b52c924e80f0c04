"""Targets: presets, and detection from what a system says of itself."""
from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.core.errors import UserError
from tilewright.target import get_target, target_names
from tilewright.target.host import cache_sizes, cpu_flags, usable_cores
from tilewright.target.x86 import LEVELS, features_of, intrinsics_of, level_of, vector_bits

ZEN2 = """processor\t: 0
flags\t\t: fpu cx8 cmov fxsr mmx sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c lahf_lm abm \
bmi1 avx2 bmi2

processor\t: 1
flags\t\t: fpu
"""


def test_every_name_gives_a_target() -> None:
    for name in target_names():
        if name == "cuda":  # the device that is there
            continue
        t = get_target(name)
        assert t.name == name and t.lanes(32) * 32 == t.vector_bits and t.cores >= 1
        assert get_target(t) is t


def test_levels() -> None:
    bits = [get_target(n).vector_bits for n in LEVELS]
    assert bits == [128, 128, 256, 512]
    assert [get_target(n).has("fma") for n in LEVELS] == [False, False, True, True]
    assert [level_of(f) for f in LEVELS.values()] == list(LEVELS)


def test_flags_of_a_cpu() -> None:
    features = features_of(cpu_flags(ZEN2))
    assert level_of(features) == "x86-64-v3" and vector_bits(features) == 256
    assert "aes" not in features and "lzcnt" in features
    assert "gather" in intrinsics_of(features) and "vnni" not in intrinsics_of(features)


def test_caches(tmp_path: Path) -> None:
    for k, (level, kind, size) in enumerate((("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1M"))):
        folder = tmp_path / f"index{k}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size), ("coherency_line_size", "64")):
            (folder / name).write_text(text + "\n")
    assert cache_sizes(tmp_path) == {"l1d": 48 << 10, "l2": 1 << 20, "line": 64}
    assert cache_sizes(tmp_path / "none") == {}


def test_cores() -> None:
    assert usable_cores() >= 1
    assert get_target("x86-64-v3", cores=7).cores == 7
    with pytest.raises(UserError, match="target-cores"):
        get_target("native", cores=0)


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean 'x86-64-v3'"):
        get_target("x86_64-v3")
