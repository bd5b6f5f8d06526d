# Everything is done with the programs in .venv, which every target makes when it is missing.
# `make` alone prints the targets.

BIN := .venv/bin
UV := $(BIN)/uv --quiet
CODE := account_service cart_service contracts infrastructure inventory_service load notification_service order_service rest_api tests
# Processes that run test files side by side; each has servers and a shop of its own.
PARALLEL ?= 2
# One of these is used, the first that is new enough; PYTHON=/path/to/python comes before them.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up down dev check types layers unit test faults release-check opponents lock sbom clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

up: .venv/.run ## install what is missing, start the shop; Ctrl-C stops it (DETACH=1 returns when it is ready, UP="--workers cart=2" passes options)
	@$(BIN)/holdfast up $(if $(DETACH),--detach) $(UP)

down: ## stop the shop
	@if [ -x $(BIN)/holdfast ]; then $(BIN)/holdfast down; fi

dev: .venv/.dev ## install what development needs too

check: .venv/.dev ## format, lint, types, layers and unit tests: about a minute
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo 'Run .venv/bin/ruff format.' >&2; exit 1; }
	@$(BIN)/ruff check --quiet $(CODE)
	@$(MAKE) --no-print-directory -j 3 types layers unit
types: .venv/.dev
	@$(BIN)/mypy --strict $(CODE)
layers: .venv/.dev
	@$(BIN)/lint-imports
unit: .venv/.dev
	@HOLDFAST_TEST_EFFORT=quick $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder tests/unit  # some of them wait

test: .venv/.dev ## unit, integration and end-to-end tests on real servers: under ten minutes (SERVICE=cart: one service's)
ifdef SERVICE
	@files=$$(find tests/unit tests/integration tests/e2e tests/faults -name 'test_*$(SERVICE)*.py'); \
	if [ -z "$$files" ]; then echo 'No test file is named after $(SERVICE).' >&2; exit 2; fi; \
	$(BIN)/pytest -q $$files
else
	@$(TESTS) tests/unit tests/integration tests/e2e
endif

faults: .venv/.dev ## what happens when processes and servers crash, stall, repeat and lie: about 20 minutes
	@$(BIN)/pytest -q tests/faults/test_chaos.py
	@$(TESTS) --ignore tests/faults/test_chaos.py tests/faults

opponents: .opponents/.installed ## install DBOS and Restate in .opponents, for `holdfast bench opponents`

release-check: .venv/.dev .opponents/.installed ## the README from a clean clone, the pages in a browser, all tools, a broker with TLS, the full chaos: about 20 minutes
	@$(BIN)/python -m tests.testkit.browser
	@$(BIN)/pytest -q tests/release/test_chaos_full.py
	@$(TESTS) --ignore tests/release/test_chaos_full.py tests/release

# The longest files come first, so that both processes are busy to the end.
TESTS = $(BIN)/pytest -q -n $(PARALLEL) --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 1

lock: .venv/.dev ## resolve requirements/*.txt anew, with hashes
	@$(UV) pip compile --upgrade $(LOCK) -o requirements/run.txt pyproject.toml
	@$(UV) pip compile --upgrade $(LOCK) -o requirements/dev.txt --group dev -c requirements/run.txt pyproject.toml
	@$(UV) pip compile --upgrade $(LOCK) -o requirements/opponents.txt --group opponents
	@printf 'uv\nhatchling\neditables\n' | $(UV) pip compile --upgrade $(LOCK) -o requirements/uv.txt -
LOCK := --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

sbom: .venv/.run ## write sbom.json: what a shop runs, in CycloneDX, for scanners of vulnerabilities
	@$(BIN)/python -m infrastructure.local.servers.sbom > sbom.json

clean: down ## remove the environment and caches; the shop's data in .holdfast stays
	@rm -rf .venv .opponents .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: an environment is brought up to date when a file it is made from is newer.
.venv/.uv: requirements/uv.txt
	@for python in $(PYTHONS) none; do \
	  "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	  echo 'Holdfast needs Python 3.11 or newer with its venv module (Debian and Ubuntu: the package python3-venv). Install it, or name one with PYTHON=/path/to/python.' >&2; exit 1; \
	fi; \
	$(BIN)/python -c '' 2>/dev/null || rm -rf .venv; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv .venv
	@echo 'installing uv' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

# The project itself is installed editable; what builds it comes by hash, too.
INSTALL = $(UV) pip sync --python $(BIN)/python --require-hashes $(1) \
	&& $(UV) pip install --python $(BIN)/python --no-deps --build-constraints requirements/uv.txt --editable .

.venv/.run: .venv/.uv requirements/run.txt pyproject.toml
	@echo 'installing the shop' >&2
	@rm -f .venv/.dev
	@$(call INSTALL,requirements/run.txt)
	@touch $@

# Their packages are in an environment of their own: their versions differ from those of the shop.
.opponents/.installed: .venv/.uv requirements/opponents.txt requirements/restate/package-lock.json
	@echo 'installing the opponents of the bench' >&2
	@$(BIN)/python -m venv --clear --without-pip .opponents
	@$(UV) pip sync --python .opponents/bin/python --require-hashes requirements/opponents.txt
	@if command -v npm >/dev/null; then \
	  cp requirements/restate/package.json requirements/restate/package-lock.json .opponents/ \
	  && npm ci --prefix .opponents --ignore-scripts --no-audit --no-fund --silent; \
	else \
	  echo 'npm is missing, so the Restate server is not installed: the bench will skip Restate.' >&2; \
	fi
	@touch $@

.venv/.dev: .venv/.uv requirements/dev.txt requirements/run.txt pyproject.toml
	@echo 'installing the shop and its development tools' >&2
	@$(call INSTALL,requirements/dev.txt)
	@touch .venv/.run $@
