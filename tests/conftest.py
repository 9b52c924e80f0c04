"""What every test runs under: no settings from outside, a compile cache of its own, `long` tests only when asked for."""
from __future__ import annotations

import os
import shutil
import tempfile

import hypothesis
import pytest

from tilewright.core.config import config as settings

LONG = os.environ.get("TILEWRIGHT_LONG") == "1"
_SUITE_CACHE = "TILEWRIGHT_SUITE_CACHE"  # set by this process, inherited by the workers

hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True)
hypothesis.settings.load_profile("long" if LONG else "default")


def pytest_configure(config: pytest.Config) -> None:
    """One fresh compile cache for a whole run, shared by its workers; settings of the shell do not reach the tests."""
    if _SUITE_CACHE not in os.environ:
        os.environ[_SUITE_CACHE] = tempfile.mkdtemp(prefix="tilewright-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_SUITE_CACHE), ignore_errors=True))
    for setting in settings.settings():
        os.environ.pop(setting.env, None)
    os.environ["TILEWRIGHT_CACHE_DIR"] = os.path.join(os.environ[_SUITE_CACHE], "cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `long` are for `make long`."""
    if not LONG:
        skip = pytest.mark.skip(reason="takes long: make long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
