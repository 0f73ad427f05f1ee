# Two commands matter: `make quickstart` and `make test`. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One OpenMP thread a process: several busy threads on few cores are far slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export TRL_EXPERIMENTAL_SILENCE ?= 1

# A machine without an NVIDIA driver gets the CPU build of PyTorch; one with a driver is left to pip's choice.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo 1)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
ifeq ($(HAS_GPU),1)
PIP_CONSTRAINTS :=
else
PIP_CONSTRAINTS := -c constraints-cpu.txt
endif

.PHONY: help install quickstart test lint format browser rectools benchmark clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(VENV)/.installed ## make the environment and install the package with what development needs

$(VENV)/.installed: setup.cfg pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "higr_hf needs Python 3.10 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	extra=""; if [ "$(HAS_GPU)" != 1 ] && $(PYTHON) -c 'import urllib.request as u; u.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; \
	then extra="--extra-index-url $(TORCH_CPU_INDEX)"; fi; \
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_CONSTRAINTS) $$extra -e ".[dev]"
	touch $@

lint: install ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The page is tested in a real browser where there is one; a continuous check may install it, a person is not asked.
BROWSERS := chromium chromium-browser chromium-headless-shell google-chrome chrome
browser: ## install a headless Chromium by the system's package manager, where that is allowed
	@for name in $(BROWSERS); do command -v $$name >/dev/null 2>&1 && exit 0; done; \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && apt-get -qq update >/dev/null 2>&1 && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium-headless-shell >/dev/null 2>&1; } || \
	echo "no Chromium, and none could be installed: the page's tests will be skipped"

test: install lint $(if $(CI),browser) ## environment, install, lint, the whole test suite
	$(BIN)/python -m pytest -n 2

quickstart: install ## MovieLens-100K from log to slates, in minutes
	$(BIN)/python -m training.quickstart --output_dir runs/quickstart

# RecTools wants NumPy below 2: an environment of its own, run as a worker process.
RECTOOLS_VENV ?= .venv-rectools

rectools: $(RECTOOLS_VENV)/.installed ## make the environment of SASRec, BERT4Rec and HSTU

$(RECTOOLS_VENV)/.installed: training/rectools-requirements.txt constraints-cpu.txt
	$(PYTHON) -m venv $(RECTOOLS_VENV)
	$(RECTOOLS_VENV)/bin/pip install --quiet --disable-pip-version-check $(PIP_CONSTRAINTS) -r training/rectools-requirements.txt
	touch $@

benchmark: install rectools ## every system on the same work; resumes where it stopped, writes BENCHMARK.md
	HIGR_RECTOOLS_PYTHON=$(RECTOOLS_VENV)/bin/python $(BIN)/python -m training.benchmark
	$(BIN)/python -m training.benchmark --plan training/recipes/benchmark_ablations.yaml --output_dir runs/benchmark_ablations

clean: ## remove the environment and the runs
	rm -rf $(VENV) $(RECTOOLS_VENV) runs
