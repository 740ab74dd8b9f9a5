# `make demo` and `make test` need python3 (3.11 or later) and nothing else.

PYTHON ?= python3
PRESET ?= plain
VENV := .venv
BIN := $(VENV)/bin
# What an installation is made from; the last one holds the version.
DECLARED := pyproject.toml constraints.txt workflows/__init__.py
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo install test check style types suite lowest coverage test-slow bench bench-serve bench-gpu figures
.PHONY: interop-demo stack stack-down clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, then run the whole job on the digits"
	@echo "make test       install, then run every check and every test but the slow ones"
	@echo "make check      the same, without installing first"
	@echo "make coverage   the same tests, and a table of the lines that they reach"
	@echo "make lowest     the same checks with the lowest versions that pyproject.toml allows"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      benchmarks on the processor"
	@echo "make bench-serve  the service against the alternatives: a table and a plot"
	@echo "make figures    the tables and plots of the README, from models that the job trains"
	@echo "make interop-demo  a tiny Stable Diffusion: import, fine-tune, promote, serve, export"
	@echo "make stack      PostgreSQL, MLflow, a Ray cluster and the service on this machine; stack-down ends them"
	@echo "make bench-gpu  tests and benchmarks that need a GPU"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raverse needs Python 3.11 or later: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than what it was made from, so a second call installs nothing.
$(VENV)/.installed: $(DECLARED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(DECLARED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-server: $(DECLARED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed

demo: install
	$(BIN)/raverse run --config digits

test: $(VENV)/.installed-dev
	$(MAKE) check

# mypy runs beside the tests: these wait for Ray now and then.
check: style
	$(MAKE) --jobs=2 types suite

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types:
	$(BIN)/mypy

suite:
	$(BIN)/python tests/halves.py

coverage: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow and not gpu' --cov

# In an environment of its own; uv chooses the versions.
lowest:
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet uv
	build/lowest/bin/uv pip install --python build/lowest --resolution lowest-direct --editable '.[dev]'
	$(MAKE) check VENV=build/lowest

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m 'slow and not gpu'

bench: $(VENV)/.installed-dev
	for script in tests/bench/bench_*.py; do $(BIN)/python $$script || exit 1; done

bench-serve: $(VENV)/.installed-dev
	$(BIN)/python tests/bench/bench_serve.py

bench-gpu: $(VENV)/.installed-dev
	$(PYTEST) -m gpu --timeout=1800 -s

figures: install
	for name in digits shapes; do \
		$(BIN)/raverse run --config $$name && \
		$(BIN)/raverse sweep --config $$name && \
		$(BIN)/raverse evaluate --config $$name --model raverse-$$name@champion || exit 1; \
	done

interop-demo: $(VENV)/.installed-dev
	$(BIN)/python -m tests.workflows.diffusers_io.demo

# `make stack PRESET=secure` asks for passwords.
stack: $(VENV)/.installed-server
	$(BIN)/raverse stack start --config digits --preset $(PRESET)

stack-down:
	$(BIN)/raverse stack stop --config digits

clean:
	rm -rf $(VENV) build *.egg-info
