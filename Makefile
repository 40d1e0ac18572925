# Targets are documented by the comment behind their name; `make` prints them.
# Needed: python3 (3.11 or later) with venv and pip, and make. Everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out/demo
PYTORCH ?= cpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint pytorch gpu docs docs-check clean

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS='	' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or later is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[build,dev,llm,mcp,report]'
	@touch $@

setup: $(VENV)/installed  ## Make a private environment in .venv and install everything that needs no GPU

demo: setup  ## Causal GQA 32/8, head dim 128, bf16 for an A100: every stage, from words to a bundle (offline)
	$(BIN)/qimeng generate --Hq 32 --Hk 8 --Dqk 128 --dtype bf16 --mask causal --target A100 --out $(OUT) --force
	@printf '\nThe bundle is in %s; look at it with: %s show %s\n' "$(OUT)" "$(BIN)/qimeng" "$(OUT)"

# `make test PYTORCH=none` leaves both out; tools/pytorch.py says where they come from.
pytorch: setup  ## PyTorch and transformers for the tests: a CPU build where there is no GPU
	@$(BIN)/python tools/pytorch.py $(PYTORCH)

test: setup pytorch  ## Lint and every test that needs neither a GPU nor long (PYTORCH=none: without PyTorch)
	@status=0; $(MAKE) --no-print-directory lint || status=1; \
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu' || status=1; exit $$status

lint: setup  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gpu: setup  ## The tests that need an NVIDIA GPU (installs PyTorch and transformers into .venv)
	@if $(BIN)/python -m pip show torch 2>/dev/null | grep -q '^Version:.*+cpu'; then $(BIN)/python -m pip uninstall --quiet --yes torch; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gpu,transformers]'
	$(BIN)/python -m pytest -m gpu

docs: setup  ## Write again what the documents take from tables and results
	$(BIN)/python tools/docs.py
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/plot_hopper.py
	$(BIN)/python benchmarks/tables.py

docs-check: setup  ## Fail where `make docs` would change something
	$(BIN)/python tools/docs.py --check
	$(BIN)/python benchmarks/plot.py --check
	$(BIN)/python benchmarks/plot_hopper.py --check
	$(BIN)/python benchmarks/tables.py --check

clean:  ## Remove .venv, out and every cache in this folder
	rm -rf $(VENV) out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
