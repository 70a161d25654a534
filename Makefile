# The project's commands. All of them install into .venv first, if that is not up to date.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Each file of tests in one process, since what it makes first serves all of it; longest files first.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder -n auto
FAST := $(PYTEST) -m "not slow" --maxprocesses 4
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo ui test test-all bench lint gpu-check stress install

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

bench: install  ## The benchmarks and the GPU check, at the size of a test
	$(PYTEST) -p tests.conftest benchmarks --maxprocesses 2

lint: install  ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

gpu-check: install  ## What can be shown on a GPU only, in about eight minutes
	$(BIN)/python benchmarks/gpu_check.py --out gpu-check

stress: install  ## Kills, lost answers, full disks: what is lost or doubled, in at most ten minutes
	$(BIN)/python benchmarks/fuzz_files.py --seconds 60
	$(BIN)/python benchmarks/stress.py --seconds 420

install: $(VENV)/.installed

# pip takes a CPU build or a CUDA build of torch, whichever its index offers for torch==2.13.0.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
