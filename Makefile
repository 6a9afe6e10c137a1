# Every target sets itself up: .venv is made once, and again when pyproject.toml changes. Another Python beside it:
# make test PYTHON=python3.13 VENV=.venv313
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup slim test check lint types floors suite coverage fuzz surgery chaos bench readme docs test-lowest clean

PYTHON ?= python3
VENV ?= .venv
# Programs of the environment run as modules: the first line of a console script breaks at a space in its path.
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := -m pip install --quiet --disable-pip-version-check
# One process for each core that this shell may use; beyond eight, memory is what is short. nproc obeys OMP_NUM_THREADS.
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))
# A thread pool in each process would only fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
TESTS := -m pytest -q -n $(WORKERS)

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("slim needs Python 3.10 or newer. Got %s.%s. Run make PYTHON=python3.x" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) $(PIP) --editable '.[dev]'
	@touch $@

setup: $(READY) ## Make .venv and install the project with everything its tests need

slim: $(READY) ## Train, cut and fine-tune a VGG on the embedded digits: the main job
	$(PY) train.py +experiment=vgg_slim

test: lint types floors suite ## Format, lint, types, floors and the test suite

check: lint types floors ## The inner loop: format, lint, types, floors and the tests of what changed
	@tests=$$($(PY) .ci/touched.py); \
	if [ -z "$$tests" ]; then echo "No test belongs to what changed."; \
	else $(ONE_THREAD) $(PY) $(TESTS) -x $$tests; fi

lint: $(READY) ## Formatting and lint rules (ruff)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(READY) ## mypy --strict over slim/
	$(PY) -m mypy

floors: $(READY) ## Which part may import which (import-linter)
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-logo

suite: $(READY) ## The tests alone: a process per core, every warning an error, doctests included
	$(ONE_THREAD) $(PY) $(TESTS)

coverage: $(READY) ## Mask, rebuild and compare every torchvision and timm network: one line each, and a count
	$(ONE_THREAD) $(PY) -m experiments.coverage

fuzz: $(READY) ## The laws of surgery on 5,000 random networks
	$(ONE_THREAD) PYTEST_TIMEOUT=7200 $(PY) $(TESTS) tests/channels/test_fuzz.py --hypothesis-profile=fuzz -o faulthandler_timeout=7190

surgery: $(READY) ## Seconds and memory of surgery beside Torch-Pruning, over torchvision's classifiers
	$(PY) $(PIP) --editable '.[dev,bench]'
	$(PY) -m experiments.surgery

chaos: $(READY) ## Kill runs at random steps, epochs and files, resume them, compare every bit; kill launchers' workers
	$(ONE_THREAD) $(PY) $(TESTS) -m chaos
	$(PY) -m experiments.chaos

bench: $(READY) ## Cost of penalty, loop, input and precision, as ratios
	$(PY) $(PIP) --editable '.[dev,bench]'
	$(PY) -m experiments.bench

readme: $(READY) ## One run of the main job with its dense control: the README's pictures and its first row of results
	$(PY) -m experiments.readme

docs: $(READY) ## The documentation as a site in build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo build/site/index.html

test-lowest: ## The suite on the oldest dependencies that pyproject.toml allows
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python $(PIP) -c .venv-lowest/constraints.txt --editable '.[dev]'
	# Old releases warn about what came after them; only failures count here.
	$(ONE_THREAD) .venv-lowest/bin/python $(TESTS) -W default

clean: ## Remove the virtual environments and every cache, keep outputs/
	rm -rf .venv* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
