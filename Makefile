# `make r1-zero` or `make test` alone set a fresh machine up and do their job.
PYTHON ?= python3
REQUIREMENTS ?= requirements/cpu.txt
# Two files of tests side by side: most of them wait for engines to start.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

# PyTorch's own wheels: its CPU builds are nowhere else.
TORCH_WHEELS := https://download.pytorch.org/whl

VENV := .venv
BIN := $(VENV)/bin
# Named by what is installed, so that only a changed lock installs again.
STAMP := $(VENV)/installed-$(shell cat $(REQUIREMENTS) pyproject.toml | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: help test r1-zero r1 own lint mutants .venv
OWN := runs/models
OWN_RUN := data.train=$(OWN)/arithmetic_train.jsonl data.heldout=$(OWN)/arithmetic_heldout.jsonl
OWN_RUN += stage.grpo.max_tokens=32 stage.evaluate.max_tokens=64 stage.grpo.steps=40
# The base solves one in fifteen: groups of eight have a right answer two times in five, and the others cost no training.
OWN_RUN += stage.grpo.prompts_per_step=8 stage.grpo.group_size=8 algorithm.kl_coef=0 algorithm.skip_idle=true
OWN_RUN += stage.grpo.max_staleness=1 stage.grpo.probe_responses=4 engine.learner.schedule.lr=2e-5
# Questions and answers are short: caches and rows for the model's whole context would take 16 GiB.
OWN_RUN += engine.rollout.max_model_len=256 engine.learner.token_budget=2048
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -hE '^[.a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv: $(STAMP) ## build the virtual environment from the pinned lock, unless it is there

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); set PYTHON to a Python 3.11 or 3.12" >&2; \
		exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(REQUIREMENTS) into $(VENV), once; this takes some minutes"
	@torch=$$(grep '^torch==' $(REQUIREMENTS)); $(PIP) "$$torch" 2>$(VENV)/pip.log || { \
		grep -q 'No matching distribution' $(VENV)/pip.log || cat $(VENV)/pip.log >&2; \
		case $$torch in *+cpu) kind=cpu;; *) kind=cu130;; esac; \
		echo "error: pip has no $$torch; run make again with PIP_EXTRA_INDEX_URL=$(TORCH_WHEELS)/$$kind" >&2; \
		exit 2; }
	@$(PIP) -r $(REQUIREMENTS)
	@$(BIN)/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || { \
		echo "error: vLLM needs libnuma.so.1, which this machine lacks (Debian and Ubuntu: apt-get install libnuma1)" >&2; \
		exit 2; }
	@$(PIP) --no-build-isolation --editable .
	@rm -f $(VENV)/installed-* && touch $@

test: .venv ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=15 $(PYTEST_ARGS)

lint: .venv ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

r1-zero: .venv ## train a base model and R1-Zero from it at laptop scale, then say where the report is
	$(BIN)/framework run job=r1_zero $(ARGS)

r1: .venv ## the whole R1 recipe at laptop scale: data, cold start, fine-tuning, RL, reward models, distilled students
	$(BIN)/framework run job=r1 $(ARGS)

own: .venv ## fetch a real small model, train it by GRPO on arithmetic, evaluate before and after
	$(BIN)/python -m jobs.own.prepare $(OWN)
	$(BIN)/framework run job=grpo run=own base=$(OWN)/smollm2 $(OWN_RUN) $(ARGS)

mutants: .venv ## change the code that decides, one place at a time, and list the changes that no test notices (hours)
	@$(PIP) -r requirements/mutants.txt
	$(BIN)/python -m tests.mutants $(ARGS)
