# One environment for each Python: 3.12 where there is one, else 3.11. `make PYTHON=3.11 test` and
# `make PYTHON=/path/to/python test` choose. `.venv` is a link to the environment last used.
PYTHON ?= 3.12 3.11

# pyenv's folders as well, because its `python3.12` on the path runs only where it is selected.
find_python = $(shell for wanted in $(1); do \
	case $$wanted in \
		(3.*) names="python$$wanted python3 python $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$wanted.*/bin/python3";; \
		(*) names=$$wanted;; \
	esac; \
	for name in $$names; do \
		version=$$($$name -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case $$wanted in (3.*) [ $$version = $$wanted ] || continue;; esac; \
		echo $$version $$(command -v $$name); exit; \
	done; \
done)
FOUND := $(call find_python,$(PYTHON))
INTERPRETER := $(lastword $(FOUND))
VENV := .venv-$(firstword $(FOUND))
BIN := $(VENV)/bin
OLDEST := .venv-oldest
OLDEST_PYTHON = $(lastword $(call find_python,3.11))
check_python = test -n "$(INTERPRETER)" || { \
	echo "error: found no Python $(PYTHON); install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }

WORKDIR ?= runs/scenes_unires
CHECKPOINT ?= $(WORKDIR)
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest
# A file's tests stay together: its fixtures are compiled once.
TWO_WORKERS := -n 2 --dist=loadfile --no-loadscope-reorder
TESTS ?= tests
# What compiles no large model.
LIGHT_TESTS := tests/layout_test.py $(addprefix tests/, configs docs input_pipeline odd_files tools) \
	$(addprefix tests/refseg_jax/, *_test.py checkpoints cli evaluation images layers reporting storage text weights)

# On Linux memory comes in pages of 2 MB: XLA takes and gives back gigabytes a step on a CPU, and
# page faults of 4 KB were an eighth of its CPU time in a step of ReLA.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help python setup run demo test test-long test-light test-demo test-oldest lint docs parity aot bench bench-gpu soak ablation clean link

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.library ## make the environment alone; `source .venv/bin/activate` enters it

run: $(VENV)/.library ## build the Scenes dataset, train UniRES on it, score it, draw what it predicts
	$(BIN)/python -m tools.build_dataset --dataset=scenes --data_dir=data
	$(BIN)/python main.py --config=configs/scenes_unires.py --workdir=$(WORKDIR)

demo: $(VENV)/.demo ## serve what `make run` has trained, or another model: `make demo CHECKPOINT=exported`
	$(BIN)/python -m tools.demo --checkpoint=$(CHECKPOINT)

test: $(VENV)/.test ## run the tests, or some: `make test TESTS=tests/refseg_jax/text`
	$(BIN)/python $(PYTEST) $(TWO_WORKERS) $(TESTS)

test-long: $(VENV)/.test ## run the tests that take a minute each: golden numbers, the notebook, layouts over devices
	$(BIN)/python $(PYTEST) $(TWO_WORKERS) -m long $(TESTS)

test-light: $(VENV)/.test ## run the tests that compile no large model
	$(BIN)/python $(PYTEST) $(TWO_WORKERS) $(LIGHT_TESTS)

test-demo: $(VENV)/.demo $(VENV)/.test ## run the tests of the web demo, in Chromium if there is one
	$(BIN)/python $(PYTEST) -rs tests/refseg_jax/cli/demo

test-oldest: $(OLDEST)/.test ## run both on Python 3.11 with the oldest versions that are allowed
	$(OLDEST)/bin/python $(PYTEST) $(TWO_WORKERS) $(TESTS)
	$(OLDEST)/bin/python $(PYTEST) $(TWO_WORKERS) -m long $(TESTS)

lint: $(VENV)/.test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs ## build the documentation; a warning is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs=auto -d build/doctrees docs build/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning -b doctest -d build/doctrees docs build/doctest
	@echo "documentation: build/docs/index.html"

parity: $(VENV)/.parity ## compare with torch, ONNX Runtime and Apache Beam
	$(BIN)/python $(PYTEST) -m parity tests/parity

aot: $(VENV)/.aot ## compile small models for TPUs that are not there
	$(BIN)/python $(PYTEST) -n 2 -m aot -rs tests/tools/compile

bench: $(VENV)/.parity ## time steps beside torch's
	$(BIN)/python $(PYTEST) -m bench -s tests/benchmarks

bench-gpu: $(VENV)/.test ## time steps on a GPU
	@if command -v nvidia-smi >/dev/null; then $(BIN)/python $(PIP) -e '.[test,cuda]'; fi
	JAX_PLATFORMS= XLA_PYTHON_CLIENT_MEM_FRACTION=.95 $(BIN)/python $(PYTEST) -m gpu -s -rs tests/benchmarks

soak: $(VENV)/.test ## run the tests that take minutes each
	$(BIN)/python $(PYTEST) -m slow -s tests

ablation: $(VENV)/.library ## repeat the studies (hours)
	$(BIN)/python -m tools.build_dataset --dataset=scenes --data_dir=data
	$(BIN)/python -m tools.ablation --study=group_tokens --output_dir=runs/ablation/group_tokens \
		--page=docs/results/group_tokens.md
	$(BIN)/python -m tools.ablation --study=rela --output_dir=runs/ablation/rela --jobs=2 \
		--page=docs/results/rela.md
	$(BIN)/python -m tools.ablation --study=no_target --output_dir=runs/ablation/no_target --jobs=2 \
		--page=docs/results/no_target.md
	$(BIN)/python -m tools.ablation --study=no_target --steps=160 --jobs=2 \
		--output_dir=runs/ablation/no_target_160 --page=docs/results/no_target_160.md
	$(BIN)/python -m tools.ablation --study=unilseg_parts --seeds 0 \
		--output_dir=runs/ablation/unilseg_parts --page=docs/results/unilseg_parts.md
	$(BIN)/python -m tools.ablation --study=grser_parts --seeds 0 \
		--output_dir=runs/ablation/grser_parts --page=docs/results/grser_parts.md

python: ## print the Python that the environment is made of
	@$(check_python)
	@echo $(INTERPRETER)

clean: ## remove the environments
	@[ ! -L .venv ] || rm .venv
	rm -rf .venv-* build *.egg-info

$(BIN)/python:
	@$(check_python)
	$(INTERPRETER) -m venv $(VENV)

link: | $(BIN)/python
	@if [ -L .venv ] || [ ! -e .venv ]; then ln -sfn $(VENV) .venv; \
	else echo "note: .venv is a folder of your own and stays; enter with: source $(BIN)/activate"; fi

$(VENV)/.library: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e .
	touch $@

$(VENV)/.test: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e '.[test]'
	touch $@

$(VENV)/.demo: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e '.[demo]'
	touch $@

$(VENV)/.docs: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e '.[docs]'
	touch $@

$(VENV)/.parity: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e '.[test,parity]'
	@# Alone: they ask for an older NumPy and OpenCV, and run on ours.
	$(BIN)/python $(PIP) --no-deps pysodmetrics==1.6.2 vos-benchmark==0.1.0 trackeval==1.3.0
	touch $@

$(VENV)/.aot: requirements.txt pyproject.toml | $(BIN)/python link
	$(BIN)/python $(PIP) -e '.[test,tpu]'
	touch $@

# Anew each time: what is installed would else be taken for old enough.
$(OLDEST)/.test: requirements.txt pyproject.toml
	$(or $(OLDEST_PYTHON),$(error found no Python 3.11)) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python $(PIP) uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[test]'
	touch $@
