# `make help` lists the targets. Everything runs from .venv, which the first target that needs it builds.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= serve_config.yaml
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

# Tests talk to this machine only, and several of them run models beside each other.
TEST_ENV := RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Those on a Ray cluster have the machine for themselves.
BESIDE := --numprocesses $(TEST_WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv serve test test-all check protos bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Build .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "DSpark needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve: $(STAMP) ## Serve the model of serve_config.yaml on this machine (CONFIG=other.yaml)
	$(BIN)/dspark serve $(CONFIG)

test: $(STAMP) ## The quick tests
	$(TEST_ENV) $(BIN)/python -m pytest $(BESIDE) -m 'not gpu and not slow and not serve' $(PYTEST_ARGS)

test-all: $(STAMP) ## Also the slow tests and those on a real Ray cluster; no GPU needed
	$(TEST_ENV) $(BIN)/python -m pytest $(BESIDE) -m 'not gpu and not serve' $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -m 'serve and not gpu' $(PYTEST_ARGS)

check: $(STAMP) ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

protos: $(STAMP) ## Write the stubs of protos/ anew
	$(BIN)/python protos/generate.py

bench: $(STAMP) ## Measure acceptance and speed of the shipped pair on this machine
	$(BIN)/dspark bench accept
	$(BIN)/dspark bench speed
	$(BIN)/dspark bench lossless

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find dspark deployments tests protos -name __pycache__ -type d -prune -exec rm -rf {} +
