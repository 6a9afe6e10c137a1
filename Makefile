# Every target sets itself up: .venv is made once, and again when pyproject.toml changes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup slim test lint types floors suite coverage fuzz surgery chaos bench test-lowest clean

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Tests run in two processes; a thread pool in each would only fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("slim needs Python 3.10 or newer. Got %s.%s. Run make PYTHON=python3.x" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(READY) ## Make .venv and install the project with everything its tests need

slim: $(READY) ## Train, cut and fine-tune a VGG on the embedded digits: the main job
	$(PY) train.py +experiment=vgg_slim

test: lint types floors suite ## Format, lint, types, floors and the test suite

lint: $(READY) ## Formatting and lint rules (ruff)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(READY) ## mypy --strict over slim/
	$(PY) -m mypy

floors: $(READY) ## Which part may import which (import-linter)
	$(VENV)/bin/lint-imports

suite: $(READY) ## The tests alone: two processes, every warning an error, doctests included
	$(ONE_THREAD) $(PY) -m pytest -q -n 2 --dist worksteal

coverage: $(READY) ## Mask, rebuild and compare every torchvision and timm network: one line each, and a count
	$(ONE_THREAD) $(PY) -m experiments.coverage

fuzz: $(READY) ## The laws of surgery on 2,000 random networks
	$(ONE_THREAD) $(PY) -m pytest -q -n 2 tests/channels/test_fuzz.py --hypothesis-profile=fuzz

surgery: $(READY) ## Seconds and memory of surgery beside Torch-Pruning, over torchvision's classifiers
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(PY) -m experiments.surgery

chaos: $(READY) ## Kill a run at 25 random moments, resume it, compare every bit
	$(PY) -m experiments.chaos

bench: $(READY) ## Cost of penalty, loop, input and precision, as ratios
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(PY) -m experiments.bench

test-lowest: ## The suite on the oldest dependencies that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt --editable '.[dev]'
	# Old releases warn about what came after them; only failures count here.
	$(ONE_THREAD) .venv-lowest/bin/python -m pytest -q -n 2 --dist worksteal -W default

clean: ## Remove the virtual environments and every cache, keep outputs/
	rm -rf .venv .venv-lowest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
