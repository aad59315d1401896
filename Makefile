# The two commands of the README, and what they need. Everything lives in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test soak lint bench bench-short bench-compare clean

demo: $(STAMP)
	@$(BIN)/python -m tests.demo

test: lint
	@$(BIN)/python -m pytest -m "not soak" -n 3 --dist worksteal

soak: $(STAMP)
	@$(BIN)/python -m pytest -m soak

# More options for the bench, as in: make bench BENCH='--data linux --rounds 3'; see python -m tests.bench --help
bench: $(STAMP)
	@$(BIN)/python -m tests.bench $(BENCH)

bench-short: $(STAMP)
	@$(BIN)/python -m tests.bench --short $(BENCH)

bench-compare: $(STAMP)
	@test -n "$(REV)" || { echo "which revision? make bench-compare REV=main" >&2; exit 2; }
	@$(BIN)/python -m tests.bench.compare $(REV) $(BENCH)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# A plain path to the packages, for the finder that pip puts there otherwise takes 0.02 s of every command.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Drystone needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,notebook,bench]' --config-settings editable_mode=compat
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .bench
