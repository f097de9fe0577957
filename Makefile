# Needs only make, Python 3.11 or newer, and a package registry. `make help` lists the targets.

# The first that is new enough: a machine's `python3` may be older than ours. `make PYTHON=...` chooses.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$python" && break; done)

VENV := .venv
RUN := $(VENV)/ready-to-run
DEV := $(VENV)/ready-to-develop
DBT := $(VENV)/dbt
BIN := $(VENV)/bin
RELEASE := $(VENV)/release
# The tests are shared out again when a worker has no more. tests/conftest.py says how many workers there are.
PYTEST := -m pytest -n logical --dist worksteal

# uv takes the system's certificates, as pip does: a registry behind a company's own authority is reached, too.
export UV_SYSTEM_CERTS := 1
export UV_NATIVE_TLS := 1

# What Python has compiled is kept, whatever the environment says: each worker of the tests takes 2 s less to start.
unexport PYTHONDONTWRITEBYTECODE

# uv where it is there (1 s instead of 15), as it is once .venv is made; where it isn't, or can't reach its registry, pip
# does the same.
UV := $(firstword $(wildcard .venv/bin/uv) uv)
define install
@if command -v $(UV) >/dev/null && $(UV) pip install --quiet --python $(BIN)/python $(1); then :; \
else $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile $(1); fi
endef

.DEFAULT_GOAL := help
.PHONY: help demo test dbt-test soak check lint types floors pins coverage dist sbom wheel-test migration lock bench bench-queue bench-limits bench-pace bench-views picture format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(RUN) ## run the whole job against the sandbox API into SQLite, and show what it did
	@$(BIN)/scan-etl demo

test: $(DEV) ## run every test, on SQLite, a PostgreSQL of its own, and MariaDB if installed; `ARGS=...` goes to pytest
	@$(BIN)/python $(PYTEST) $(ARGS)

dbt-test: $(DEV) $(DBT)/ready ## run the dbt package of deploy/ with a real dbt, which gets an environment of its own
	@$(BIN)/python -m pytest -n 0 -m dbt $(ARGS) tests/database/test_dbt.py

SOAK_SECONDS ?= 300

soak: $(DEV) ## ill-treat many workers for a long time, and play a year of nights: make soak SOAK_SECONDS=3600
	@SCAN_ETL_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python $(PYTEST) $(ARGS) tests/workers

check: lint types floors pins test ## what decides in CI: format, lint, types, floors, pins, then every test

lint: $(DEV)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(DEV)
	@$(BIN)/mypy

floors: $(DEV)
	@$(BIN)/lint-imports --no-logo

pins: ## the requirement files name versions and hashes, and no place to fetch them from
	@! grep -n '://' requirements/*.txt

coverage: $(DEV) ## how much of the code the tests reach, which takes them twice as long; `ARGS=...` goes to pytest
	@$(BIN)/coverage erase
	@$(BIN)/coverage run $(PYTEST) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

dist: $(DEV) $(RELEASE)/ready ## build the source archive and the wheel into dist/, and look whether an index would take them
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation . >/dev/null
	@$(RELEASE)/bin/twine check --strict dist/*

sbom: dist ## list in dist/ what the wheel consists of when it is installed with the pinned versions, as CycloneDX
	@bash .ci/sbom $(BIN) $(RELEASE)/bin

wheel-test: dist ## use each of the archives in an environment of its own, away from this folder
	@bash .ci/wheel $(BIN)

migration: $(DEV) ## write the next migration from etl/database/schema.py: make migration MESSAGE="add scans.engine"
	@test -n "$(MESSAGE)" || { echo 'Say what it does: make migration MESSAGE="add scans.engine"' >&2; exit 1; }
	@$(BIN)/python .ci/migration.py "$(MESSAGE)"

lock: $(DEV) ## pin the newest versions that pyproject.toml allows
	@bash .ci/lock $(BIN)

bench: $(DEV) ## measure the speed of the parts and of the whole
	@$(BIN)/python benchmarks/bench.py

bench-queue: $(DEV) ## measure whether the queue stays fast when it is long
	@$(BIN)/python benchmarks/queue_bench.py

bench-limits: $(DEV) ## measure how a run fares against an API that limits or fails; takes 10 minutes, on a quiet machine
	@$(BIN)/python benchmarks/limits_bench.py

bench-pace: $(DEV) ## measure how closely many workers keep one pace, on a quiet machine
	@$(BIN)/python benchmarks/pace_bench.py

bench-views: $(DEV) ## measure whether dashboards get right numbers in a second; `ARGS="--scans 1000000"` for more scans
	@$(BIN)/python benchmarks/views_bench.py $(ARGS)

picture: $(DEV) ## make the picture of the README anew, with Chromium
	@bash .ci/picture $(BIN)

format: $(DEV) ## format the code and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove the environment and everything that was built or measured
	rm -rf $(VENV) build dist .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache

# The environment: made once, and again when a requirement changes. Running needs half of what developing
# does, so `make demo` doesn't wait for the tools.

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(NEW_ENOUGH)' || { \
		echo "scan-etl needs Python 3.11 or newer: install it, or name it with 'make PYTHON=/path/to/python3'." >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version) ..."
	@"$(PYTHON)" -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) can't make an environment: on Debian or Ubuntu, install python3-venv." >&2; \
		exit 1; }

$(RUN): requirements/run.txt requirements/build.txt pyproject.toml | $(BIN)/python
	$(call install,--require-hashes -r requirements/run.txt -r requirements/build.txt)
	$(call install,--no-deps --no-build-isolation --editable .)
	@touch $@

$(DEV): requirements/dev.txt $(RUN)
	$(call install,--require-hashes -r requirements/dev.txt)
	@touch $@

# For releases, in an environment of its own: what twine brings would change what the tests find.
$(RELEASE)/ready: requirements/release.txt | $(DEV)
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(RELEASE)
	@$(BIN)/uv pip install --quiet --python $(RELEASE)/bin/python --require-hashes -r requirements/release.txt
	@touch $@

$(DBT)/ready: private BIN := $(DBT)/bin
$(DBT)/ready: requirements/dbt.txt | $(BIN)/python
	@"$(PYTHON)" -m venv $(DBT)
	$(call install,--require-hashes -r requirements/dbt.txt)
	@touch $@
