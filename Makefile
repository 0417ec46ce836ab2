# make demo           train a small int8 language model on this machine's own Python source, 90 s
# make test           the test suite
# make test-slow      every test, also the slow ones, compiled with all optimizations
# make test-suites    install the extra rl as well, and test the environments of its suites
# make lint           ruff, pyright, and whether uv.lock fits pyproject.toml
# make docs           build the site of docs/ into site/, with the API reference
# make hooks          install the git hooks of .pre-commit-config.yaml
# make lock           bring uv.lock up to date with pyproject.toml
# All set themselves up in .venv from nothing but python3 (3.11 or newer) and the package index.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The first Python that is new enough and can make virtual environments.
FITS := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && echo $$p && break; done)
WORKERS ?= 2
DEMO := runs/demo

.PHONY: demo test test-suites test-slow lint format docs hooks lock bench clean

demo: $(VENV)/core.stamp
	@if [ -e $(DEMO) ]; then n=1; while [ -e $(DEMO)-$$n ]; do n=$$((n + 1)); done; \
	mv $(DEMO) $(DEMO)-$$n; echo "The demo of before is in $(DEMO)-$$n now."; fi
	$(BIN)/springroll pretrain --recipe demo --out $(DEMO)
	@echo; echo "What it writes now:"; echo
	$(BIN)/springroll sample $(DEMO)
	@echo; echo "The learning curve is in $(DEMO)/curve.png, the figures in $(DEMO)/summary.json."

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --ignore tests/suites

test-suites: $(VENV)/suites.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" tests/suites

test-slow: $(VENV)/test.stamp
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	--ignore tests/suites

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/uv lock --check --offline

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/docs.stamp
	$(BIN)/python tools/api_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

hooks: $(VENV)/lint.stamp
	$(BIN)/pre-commit install

lock: $(VENV)/lint.stamp
	$(BIN)/uv lock

bench: $(VENV)/core.stamp
	@mkdir -p bench/results
	$(BIN)/springroll bench all --out bench/results/latest.jsonl

clean:
	rm -rf $(VENV) site docs/api .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "springroll needs python3, 3.11 or newer, with the venv module \
	(Debian: apt install python3-venv); name another one with make PYTHON=..."; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	@$(PIP) 'pip>=25.1' # the first that reads dependency groups

$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/suites.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test,rl]'
	@touch $@

$(VENV)/lint.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test]' --group lint
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable . --group docs
	@touch $@
