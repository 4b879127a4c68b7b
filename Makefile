# The same verbs for people and for CI. Each sets up what it needs on a machine with only Python and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help .venv shell demo test coverage smoke check bench docs

help:
	@echo "make shell   a shell in which racm3 is on the path"
	@echo "make demo    draw, caption and infill with the shipped models; writes a page to look at"
	@echo "make test    run the tests, but for those of a minute or more"
	@echo "make smoke   run a test of every part, within a minute"
	@echo "make coverage  run all tests, in more than twice the time, and print the lines that none reaches"
	@echo "make check   lint, formatting, types"
	@echo "make bench   run every benchmark; each ends with one line of JSON"
	@echo "make docs    rewrite docs/cli.md from the commands' own help"
	@echo "make .venv   only the set-up: a virtual environment in .venv"

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

shell: .venv/installed
	@echo "racm3 is on the path; leave with exit"
	@PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" $${SHELL:-sh}

demo: .venv/installed
	$(BIN)/racm3 demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

coverage: .venv/installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

smoke: .venv/installed
	$(BIN)/python -m pytest -m smoke

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

docs: .venv/installed
	$(BIN)/python docs/make_cli.py > docs/cli.md
