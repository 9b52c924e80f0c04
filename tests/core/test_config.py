"""Settings: defaults, environment, scoped overrides, bad values."""
from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tilewright.core.config import Config, config
from tilewright.core.errors import UserError


def test_environment_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWRIGHT_THREADS", raising=False)
    assert config.threads >= 1
    monkeypatch.setenv("TILEWRIGHT_THREADS", "3")
    assert config.threads == 3
    with config.override(threads=5, debug=True):
        with config.override(threads=7):
            assert config.threads == 7 and config.debug
        assert config.threads == 5
    assert config.threads == 3


def test_overrides_end_with_an_error_and_stay_in_their_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_THREADS", "2")
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError), config.override(threads=9):
        other = threading.Thread(target=lambda: seen.append(config.threads))
        other.start()
        other.join()
        raise ZeroDivisionError
    assert seen == [2] and config.threads == 2


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for s in config.settings():
        monkeypatch.delenv(s.env, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert config.cache_dir == Path("/somewhere/tilewright")
    assert config.debug is False and config.dump_dir is None and config.numerics == "default"
    assert {s.env for s in config.settings()} == {f"TILEWRIGHT_{n}" for n in (
        "CACHE_DIR", "THREADS", "DEBUG", "DUMP_DIR", "COMPILE_WORKERS", "NUMERICS", "WEBGPU_LIBRARY")}
    assert all(s.__doc__ for s in config.settings()) and Config.threads.name == "threads"


@pytest.mark.parametrize("name, value", [("threads", "many"), ("threads", "0"), ("debug", "maybe"), ("numerics", "loose")])
def test_bad_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TILEWRIGHT_" + name.upper(), value)
    with pytest.raises(UserError, match=r"\[setting-invalid\].*\n.*environment variable TILEWRIGHT_") as error:
        getattr(config, name)
    assert error.value.hint
    with pytest.raises(UserError, match="setting-invalid"), config.override(**{name: value}):
        pass


def test_unknown_setting_and_assignment() -> None:
    with pytest.raises(UserError, match="setting-unknown"), config.override(thread=1):
        pass
    with pytest.raises(AttributeError, match=r"config\.override"):
        config.threads = 1
