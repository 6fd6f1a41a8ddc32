# make run   set everything up and run the main job on the embedded Scenes dataset
# make test  set everything up and run the tests
# make setup the environment alone
# Python 3.11 or 3.12 is taken from the path; `make PYTHON=/path/to/python run` names another.

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/scenes_unires
PYTEST := $(BIN)/python -m pytest

# On Linux memory comes in pages of 2 MB: XLA takes and gives back gigabytes a step on a CPU, and
# page faults of 4 KB were an eighth of its CPU time in a step of ReLA.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup run test lint parity bench bench-gpu soak ablation clean

run: $(VENV)/.library
	$(BIN)/python -m tools.build_dataset --dataset=scenes --data_dir=data
	$(BIN)/python main.py --config=configs/scenes_unires.py --workdir=$(WORKDIR)

setup: $(VENV)/.library

test: $(VENV)/.test
	$(PYTEST) -n 2 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

parity: $(VENV)/.parity
	$(PYTEST) -m parity tests/parity

bench: $(VENV)/.parity
	$(PYTEST) -m bench -s tests/benchmarks

bench-gpu: $(VENV)/.test
	@if command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,cuda]'; fi
	JAX_PLATFORMS= XLA_PYTHON_CLIENT_MEM_FRACTION=.95 $(PYTEST) -m gpu -s -rs tests/benchmarks

soak: $(VENV)/.test
	$(PYTEST) -m slow -s tests

ablation: $(VENV)/.library
	$(BIN)/python -m tools.build_dataset --dataset=scenes --data_dir=data
	$(BIN)/python -m tools.ablation --study=group_tokens --output_dir=runs/ablation/group_tokens \
		--page=docs/results/group_tokens.md
	$(BIN)/python -m tools.ablation --study=rela --output_dir=runs/ablation/rela --jobs=2 \
		--page=docs/results/rela.md
	$(BIN)/python -m tools.ablation --study=no_target --output_dir=runs/ablation/no_target --jobs=2 \
		--page=docs/results/no_target.md
	$(BIN)/python -m tools.ablation --study=no_target --steps=160 --jobs=2 \
		--output_dir=runs/ablation/no_target_160 --page=docs/results/no_target_160.md

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.library: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/.parity: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,parity]'
	@# Alone: they ask for an older NumPy and OpenCV, and run on ours.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		pysodmetrics==1.6.2 vos-benchmark==0.1.0 trackeval==1.3.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
