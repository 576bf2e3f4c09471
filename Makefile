# make demo | test | test-all | lint | types | bench. One environment, made from pyproject.toml and ci/constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Options for pip, for example to take torch's CPU build: make demo PIP_OPTIONS="--extra-index-url <PyTorch's CPU index>"
PIP_OPTIONS ?=

.PHONY: install demo test test-all lint types bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgebuild needs Python 3.11 or later; give one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c ci/constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/edgebuild run -c demo

test: install
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python -m pytest -m '' --durations=15

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python ci/bench/reject_cost.py

clean:
	rm -rf $(VENV) build dist *.egg-info
