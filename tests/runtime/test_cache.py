"""The cache on disk: what goes in comes out, or nothing does; also with several processes, broken entries, bad folders."""
from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tilewright.core.errors import InternalError
from tilewright.runtime import cache as cache_module
from tilewright.runtime.cache import Cache, default_folder


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_round_trip_and_private_folder(tmp_path):
    cache = Cache(tmp_path / "deep" / "cache")
    assert cache.get(key("a")) is None
    for data in (b"", b"x", os.urandom(100_000)):
        cache.put(key("a"), data)
        assert cache.get(key("a")) == data
        assert Cache(cache.folder).get(key("a")) == data
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "chosen"))
    assert Cache().folder == tmp_path / "chosen"
    monkeypatch.delenv("TILEWRIGHT_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "tilewright"


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "foreign"])
def test_corrupted_entries_count_as_absent(tmp_path, how):
    cache = Cache(tmp_path / "c")
    cache.put(key("a"), b"something to keep" * 10)
    (path,) = cache.folder.glob("??/*")
    good = path.read_bytes()
    path.write_bytes({"flip": good[:60] + bytes([good[60] ^ 1]) + good[61:], "cut": good[:-1], "empty": b"",
                      "foreign": b"some other file, long enough to hold a header of ours"}[how])
    assert cache.get(key("a")) is None
    cache.put(key("a"), b"new")
    assert cache.get(key("a")) == b"new"


def test_keys_cannot_leave_the_folder(tmp_path):
    for bad in ("../../etc/passwd", "", "abc", "g" * 64):
        with pytest.raises(InternalError):
            Cache(tmp_path / "c").get(bad)


def _one_warning(make) -> Cache:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = make()
        cache.put(key("a"), b"data")
        cache.put(key("b"), b"data")
        assert cache.get(key("a")) is None
    assert len(caught) == 1 and "TILEWRIGHT_CACHE_DIR" in str(caught[0].message)
    return cache


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert not _one_warning(lambda: Cache(tmp_path / "file" / "cache")).usable


def test_folder_of_somebody_else(tmp_path, monkeypatch):
    folder = tmp_path / "c"
    folder.mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(cache_module.os, "getuid", lambda: owner + 1)
    _one_warning(lambda: Cache(folder))
    assert list(folder.iterdir()) == []


def test_folder_that_others_can_write(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    folder.chmod(0o777)
    _one_warning(lambda: Cache(folder))


def test_folder_that_vanishes_or_fills_up(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.tempfile, "mkstemp", full)
    _one_warning(lambda: Cache(tmp_path / "c"))


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "c")

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.put(key("a"), b"data")
    assert list(cache.folder.glob("??/*")) == []


def test_least_recently_used_entries_go_first(tmp_path):
    cache = Cache(tmp_path / "c", limit=3500)
    for i, name in enumerate("abcd"):
        cache.put(key(name), bytes(960))
        os.utime(cache._path(key(name)), (i + 1, i + 1))
    assert cache.get(key("a"))  # now the youngest
    cache.prune()
    assert [name for name in "abcd" if cache.get(key(name))] == ["a", "c", "d"]


def test_leftovers_of_crashed_writers_are_removed(tmp_path):
    cache = Cache(tmp_path / "c")
    cache.put(key("a"), b"data")
    old, new = cache._path(key("a")).with_name(".new-old"), cache._path(key("a")).with_name(".new-now")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.prune()
    assert not old.exists() and new.exists()


def test_several_processes(tmp_path):
    """Writers and readers of the same keys: every read is whole or nothing, also while entries are pruned."""
    script = ("import sys, hashlib, random\nfrom pathlib import Path\nfrom tilewright.runtime.cache import Cache\n"
              "c = Cache(Path(sys.argv[1]), limit=200_000); r = random.Random(int(sys.argv[2]))\n"
              "for i in range(300):\n"
              "    n = r.randrange(20); k = hashlib.sha256(b'%d' % n).hexdigest(); d = bytes([n]) * (20000 + n)\n"
              "    if r.random() < .5: c.put(k, d)\n"
              "    else: got = c.get(k); assert got is None or got == d\n"
              "    if i % 50 == 0: c.prune()\n"
              "assert c.usable\n")
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", script, str(tmp_path / "c"), str(i)],
                                  cwd=Path(__file__).parents[2]) for i in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
