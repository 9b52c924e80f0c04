# Every target does its own set-up: all it needs is python3 (>= 3.11, with venv), make and a C compiler.
#
#   make test    style, types and tests        make demo    digits and ResNet-18, start to end
#   make long    the tests that take longer    make bench   rates of kernels on this machine
#   make lint    style and types only          make clean   remove what was built

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PY := $(VENV)/bin/python
NATIVE := $(wildcard tilewright/runtime/native/*.c tilewright/runtime/native/*.h)

.PHONY: test long bench demo lint golden build clean
.DELETE_ON_ERROR:

test: lint
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term

long: build $(VENV)/.dev
	TILEWRIGHT_LONG=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

# Writes anew the texts that tests compare with, docs/errors.md and docs/operators.md among them: look at the difference before keeping it.
golden: build $(VENV)/.dev
	TILEWRIGHT_UPDATE_GOLDEN=1 $(PY) -m pytest -q tests/test_errors.py tests/test_operators_page.py

lint: build $(VENV)/.dev
	$(PY) -m ruff check
	$(PY) -m mypy

demo: build $(VENV)/.demo
	$(PY) examples/demo.py

bench: build
	$(PY) benchmarks/rates.py

# The package itself, editable: the C runtime is compiled into tilewright/runtime. Built again when its sources change.
build: $(VENV)/.built
$(VENV)/.built: pyproject.toml setup.py $(NATIVE) | $(VENV)/.python
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev $(VENV)/.demo: $(VENV)/.%: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	rm -f tilewright/runtime/_native*.so
	find tilewright tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
