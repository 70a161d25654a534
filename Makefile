# The project's commands. All of them install into .venv first, if that is not up to date.
# With another Python, beside it: make test PYTHON=python3.12 VENV=.venv-3.12
PYTHON ?= $(shell .ci/python)
VENV := .venv
VERSIONS := -c constraints.txt
BIN := $(VENV)/bin
# Each file of tests in one process, since what it makes first serves all of it; longest files first.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder -n auto
FAST := $(PYTEST) -m "not slow" --maxprocesses 4
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo ui test test-all test-newest bench lint docs gpu-check stress install

demo: install  ## GRPO against SFT on a tiny OLMo-2, from pre-training to report
	@$(BIN)/mlflow run . --env-manager local --experiment-name scalpel-demo
	@echo "Open the MLflow UI with: make ui   (then http://127.0.0.1:5000/?workflowType=machine_learning)"

ui: install  ## MLflow's UI on the runs of this directory, and the views at /scalpel/
	$(BIN)/mlflow server --app-name scalpel --port 5000

test: install  ## Fast tests
	$(FAST)

test-all: install  ## Slow tests too: real training, servers, whole experiments
	$(FAST)
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile many --maxprocesses 2 --durations=25

test-newest:  ## Fast tests with the newest packages that pyproject.toml allows, in .venv-newest
	@rm -f .venv-newest/.installed
	@$(MAKE) test VENV=.venv-newest VERSIONS="--upgrade --upgrade-strategy eager"

bench: install  ## The benchmarks and the GPU check, at the size of a test
	$(PYTEST) -p tests.conftest benchmarks --maxprocesses 2

lint: install  ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install  ## The documentation as a site, in build/site; no network needed
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

gpu-check: install  ## What can be shown on a GPU only, in about eight minutes
	$(BIN)/python benchmarks/gpu_check.py --out gpu-check

stress: install  ## Kills, lost answers, full disks: what is lost or doubled, in at most ten minutes
	$(BIN)/python benchmarks/fuzz_files.py --seconds 60
	$(BIN)/python benchmarks/stress.py --seconds 420

install: $(VENV)/.installed  ## All that tests, documents and commands need

# pip takes a CPU build or a CUDA build of torch, whichever its index offers for torch==2.13.0.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(or $(PYTHON),false) -m venv $(VENV)
	@echo "Installing about $$(grep -c == constraints.txt) packages for $$($(BIN)/python --version)" \
		"into $(VENV): some 3 minutes and 3 GB the first time. Log: $(VENV)/install.log"
	@$(BIN)/python -m pip install --disable-pip-version-check $(VERSIONS) -e ".[dev]" \
		> $(VENV)/install.log 2>&1 || { tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $@
