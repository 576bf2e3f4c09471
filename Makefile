# make demo | test | test-slow | test-all | lint | types | docs | latency-check | bench. One environment, made from pyproject.toml and ci/constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Options for pip, for example to take torch's CPU build: make demo PIP_OPTIONS="--extra-index-url <PyTorch's CPU index>"
PIP_OPTIONS ?=
BASE ?= HEAD
# Two files of tests at a time, of one thread each: those of torch would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-slow test-all lint types docs latency-check bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgebuild needs Python 3.11 or later; give one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c ci/constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/edgebuild run -c demo

test: install
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow --durations=15

test-all: test test-slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows ci/templates/github-latency.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.gitlab-ci ci/templates/gitlab-latency.yml

types: install
	$(BIN)/mypy

# The generated pages, from the code, and the site.
docs: install
	$(BIN)/python ci/make_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Has a network of the zoo become slower than at the revision BASE? Exit code 3 ('could not tell') is told, not failed.
latency-check: install
	$(BIN)/edgebuild latency check build/zoo/cpu_small.onnx build/zoo/mobilenetv3_small.onnx \
	  build/zoo/lineage_student.onnx --build '$(abspath $(BIN))/python ci/build_zoo.py build/zoo' --base-rev $(BASE) \
	  || test $$? -eq 3

bench: install
	$(BIN)/python ci/bench/reject_cost.py
	$(BIN)/python ci/bench/latency_bench.py
	$(BIN)/python ci/bench/busy_bench.py
	$(BIN)/python ci/bench/ship_bench.py
	$(BIN)/python ci/bench/train_bench.py
	$(BIN)/python ci/bench/overhead_bench.py
	$(BIN)/python ci/bench/workers_bench.py

clean:
	rm -rf $(VENV) build dist *.egg-info
