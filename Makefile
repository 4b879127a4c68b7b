# Six verbs, the same for people and for CI. Each sets up everything it needs on a machine with only Python and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help .venv demo test check bench docs

help:
	@echo "make demo    draw, caption and infill with the shipped models; writes a page to look at"
	@echo "make test    run the tests"
	@echo "make check   lint, formatting, types"
	@echo "make bench   run every benchmark; each ends with one line of JSON"
	@echo "make docs    rewrite docs/cli.md from the commands' own help"
	@echo "make .venv   only the set-up: a virtual environment in .venv"

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/racm3 demo

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

docs: .venv/installed
	$(BIN)/python docs/make_cli.py > docs/cli.md
