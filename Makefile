# `make demo` and `make test` are each complete: they make .venv, install the pinned versions, and run.
# Python 3.11 with pip is all that has to be there; choose another with `make test PYTHON=python3.12`.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
FRAMEWORK ?= torch
# More options for the demo, e.g. `make demo ARGS="--norm linf --steps 200"`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt
# pip would compile file by file; this does on all cores, and leaves out what is hardly imported. A
# file that is no Python of this version is none of ours.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/(tests|transformers/models)/' $(VENV)/lib || :
DEMO := $(VENV)/.demo-$(FRAMEWORK)
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
FUZZ := $(VENV)/.fuzz
DOCS := $(VENV)/.docs
TORCH := $(VENV)/.torch
# One thread per worker: two workers fill two cores. Each starts with one half of the files and keeps
# to them, so that what both would compile is mostly compiled once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

SUITES := $(BIN)/python -m tests.suites

.PHONY: help demo test test-all test-slow test-machines test-seeds test-versions lint types format bench fuzz docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo       train on real digits and draw the edge of stability (FRAMEWORK=torch|jax)"
	@echo "make test       lint, types and tests (10 minutes on two cores)"
	@echo "make test-all   the same, and make test-slow: the slow tests, one process after another (an hour)"
	@echo "make test-machines   the numeric tests under instruction sets and thread counts (an hour)"
	@echo "make test-seeds      the numeric tests with ten perturbations of their draws (80 minutes)"
	@echo "make docs       the documentation site in build/site: strict, tutorials executed (5 minutes)"
	@echo "make test-versions   a release in clean environments, with the oldest and newest versions"
	@echo "make fuzz       hostile input: 20,000 cases, and 200,000 files (half an hour)"
	@echo "make lint | types | format | bench | clean"

demo: $(DEMO)
	$(BIN)/geodiag demo --framework $(FRAMEWORK) $(ARGS)

test: lint types
	$(PYTEST) -m "not slow"

test-all: test test-slow

test-slow: $(DEV)
	$(SUITES) slow $(ARGS)

test-machines: $(DEV)
	$(SUITES) machines $(ARGS)

test-seeds: $(DEV)
	$(SUITES) seeds $(ARGS)

test-versions: $(DEV)
	$(BIN)/python -m tests.release $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

fuzz: $(FUZZ)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 20000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.reader --runs 200000

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || \
		{ echo "Python 3.11 or newer was not found; say where: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch by itself first: resolved together with what depends on it, a build with several GB of CUDA
# packages can come in its place.
$(TORCH): constraints.txt | $(BIN)/python
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo-torch: $(TORCH)

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[$(FRAMEWORK),plot,demo]"
	@$(COMPILE)
	@touch $@

$(DEV): pyproject.toml constraints.txt $(TORCH) | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@$(COMPILE)
	@touch $@

$(BENCH): pyproject.toml constraints.txt $(TORCH) | $(BIN)/python
	$(INSTALL) -e ".[bench]"
	@$(COMPILE)
	@touch $@

$(DOCS): pyproject.toml constraints.txt $(TORCH) | $(BIN)/python
	$(INSTALL) -e ".[docs]"
	@touch $@

$(FUZZ): $(DEV)
	$(INSTALL) -e ".[fuzz]"
	@touch $@
