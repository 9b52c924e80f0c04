"""The compile cache on disk: bytes by content key, shared by processes. In: a key (hex digest) and bytes. Out: the bytes.

Entries are written to a temporary file and renamed, so readers see whole ones or none; each carries a checksum, and one
that fails it counts as absent. A folder that cannot be used costs speed, never correctness: one warning, no cache.
"""
from __future__ import annotations

import hashlib
import os
import stat
import string
import tempfile
import time
import warnings
from pathlib import Path

from tilewright.core.errors import InternalError

_MAGIC = b"TWCACHE1"
_HEADER = len(_MAGIC) + 32
_STALE_SECONDS = 3600
_PRUNE_EVERY = 64  # puts; looking at every entry takes a moment

DEFAULT_LIMIT = 4 << 30


def default_folder() -> Path:
    """TILEWRIGHT_CACHE_DIR, else ~/.cache/tilewright."""
    chosen = os.environ.get("TILEWRIGHT_CACHE_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "tilewright"


class Cache:
    """A store of at most about `limit` bytes in `folder` (created with mode 0700); the longest unused entries go first.

    `usable` is False if the folder cannot be created or written, belongs to somebody else or is writable by others
    (what is in it gets executed): then `get` finds nothing, `put` does nothing, and one warning has said why.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.usable = True
        self._puts = 0
        try:
            self.folder = folder if folder is not None else default_folder()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = _unsafe(self.folder)
        except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
            problem = str(error)
        if problem:
            self._give_up(problem)

    def get(self, key: str) -> bytes | None:
        """The bytes stored under `key`, or None."""
        if not self.usable:
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if data[:len(_MAGIC)] != _MAGIC or hashlib.sha256(memoryview(data)[_HEADER:]).digest() != data[len(_MAGIC):_HEADER]:
            path.unlink(missing_ok=True)
            return None
        try:
            os.utime(path)  # used now: pruned last
        except OSError:
            pass  # another process pruned it, or the folder became read-only: the bytes are good
        return data[_HEADER:]

    def put(self, key: str, data: bytes) -> None:
        """Stores `data` under `key`, replacing what was there."""
        if not self.usable:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(data).digest())
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._give_up(str(error))
            return
        if self._puts % _PRUNE_EVERY == 0:
            self.prune()
        self._puts += 1

    def prune(self) -> None:
        """Removes the longest unused entries beyond the limit, and what crashed writers left."""
        entries, total, now = [], 0, time.time()
        for path in self.folder.glob("??/*"):
            try:
                info = path.stat()
                if path.name.startswith(".new-"):
                    if now - info.st_mtime > _STALE_SECONDS:
                        path.unlink(missing_ok=True)
                    continue
            except OSError:
                continue  # another process removed it
            entries.append((info.st_mtime_ns, info.st_size, path))
            total += info.st_size
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if total <= self.limit:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
            total -= size

    def _path(self, key: str) -> Path:
        if len(key) < 8 or not set(key) <= set(string.hexdigits):
            raise InternalError(f"{key!r} is not a cache key: hex digits of a digest are")
        return self.folder / key[:2] / key

    def _give_up(self, problem: str) -> None:
        if self.usable:
            warnings.warn(f"compiling without the cache on disk: {problem} (TILEWRIGHT_CACHE_DIR names another folder)",
                          RuntimeWarning, stacklevel=3)
        self.usable = False


def _unsafe(folder: Path) -> str:
    """Why code from this folder must not be run, or ""."""
    info = folder.stat()
    if info.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if stat.S_IMODE(info.st_mode) & 0o022:
        return f"{folder} can be written by other users"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"
