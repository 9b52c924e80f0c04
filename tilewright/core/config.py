"""Every setting of Tilewright: type, default, environment variable and meaning, in one file.

    config.threads                       the override in force, else $TILEWRIGHT_THREADS, else the default
    with config.override(threads=1):     for this block (and the tasks started in it) only
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args, overload

from tilewright.core.errors import UserError

T = TypeVar("T")
Numerics = Literal["default", "strict", "tf32"]
_overrides: ContextVar[dict[str, Any] | None] = ContextVar("tilewright_settings", default=None)


class Setting(Generic[T]):
    """One typed setting, read as an attribute of `config`.

    `parse` turns the environment variable's text or an override into a value (ValueError if it cannot).
    """

    def __init__(self, env: str, default: Callable[[], T], parse: Callable[[Any], T], doc: str) -> None:
        self.env, self.default, self.parse, self.__doc__ = env, default, parse, doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, obj: object, owner: type) -> T: ...
    def __get__(self, obj: object | None, owner: type) -> T | Setting[T]:
        if obj is None:
            return self
        overrides = _overrides.get()
        if overrides and self.name in overrides:
            return cast(T, overrides[self.name])
        text = os.environ.get(self.env)
        return self.default() if text is None or text == "" else self.check(text, f"environment variable {self.env}")

    def __set__(self, obj: object, value: T) -> None:
        raise AttributeError(f"set {self.name} with config.override({self.name}=...) or {self.env}")

    def check(self, value: Any, where: str) -> T:
        """The parsed value. Raises UserError `setting-invalid`."""
        try:
            return self.parse(value)
        except ValueError as error:
            raise UserError("setting-invalid", f"{self.name} cannot be {value!r}: {error}", where=where,
                            hint=(self.__doc__ or "").split("\n")[0]) from None


def _count(value: Any) -> int:
    n = int(value)
    if n < 1:
        raise ValueError("it must be at least 1")
    return n


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in known:
        raise ValueError("it is 1 or 0")
    return known[str(value).lower()]


def _path(value: Any) -> Path:
    return Path(value).expanduser()


def _optional_path(value: Any) -> Path | None:
    return None if value is None else _path(value)


def _numerics(value: Any) -> Numerics:
    if value not in get_args(Numerics):
        raise ValueError("it is one of " + ", ".join(get_args(Numerics)))
    return cast(Numerics, value)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tilewright"


def _default_numerics() -> Numerics:
    return "default"


def available_cores() -> int:
    """How many cores this process may use (affinity counts, where the system tells)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Config:
    """The settings in force."""

    cache_dir = Setting("TILEWRIGHT_CACHE_DIR", _default_cache, _path,
                        "Folder of the compile cache (default: $XDG_CACHE_HOME/tilewright).")
    threads = Setting("TILEWRIGHT_THREADS", available_cores, _count,
                      "Threads that run a model (default: all cores that the process may use).")
    compile_workers = Setting("TILEWRIGHT_COMPILE_WORKERS", available_cores, _count,
                              "Processes that compile kernels (default: all cores that the process may use).")
    debug = Setting("TILEWRIGHT_DEBUG", lambda: False, _flag,
                    "Verify the program after every pass and show tracebacks (1 or 0; default 0).")
    dump_dir = Setting("TILEWRIGHT_DUMP_DIR", lambda: None, _optional_path,
                       "Folder that gets the program before and after every pass (default: none).")
    webgpu_library = Setting("TILEWRIGHT_WEBGPU_LIBRARY", lambda: None, _optional_path,
                             "File of the wgpu-native library, for WebGPU devices (default: that of the wgpu package).")
    numerics = Setting("TILEWRIGHT_NUMERICS", _default_numerics, _numerics,
                       "'strict' keeps the order of sums; 'default' also allows faster algorithms of bounded error, 'tf32' "
                       "also to round operands of products to TF32 on devices that have it.")

    def settings(self) -> Iterator[Setting[Any]]:
        """Every setting, in the order of declaration."""
        return (s for s in vars(type(self)).values() if isinstance(s, Setting))

    @contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        """Values for the enclosed block, in this thread or task only. UserError for an unknown name or a bad value."""
        known = {s.name: s for s in self.settings()}
        for name in values:
            if name not in known:
                raise UserError("setting-unknown", f"there is no setting {name!r}",
                                hint="settings: " + ", ".join(sorted(known)))
        new = {**(_overrides.get() or {}), **{k: known[k].check(v, f"override({k}=...)") for k, v in values.items()}}
        token = _overrides.set(new)
        try:
            yield
        finally:
            _overrides.reset(token)


config = Config()
