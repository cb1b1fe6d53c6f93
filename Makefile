# make test | demo | bench | check: each one first makes the environment, once, with the pins of constraints.txt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
TYPES := build/types

.PHONY: help install demo test check lint types format eval bench clean

help:
	@echo "make demo    a real clip through a Video LLM, with and without SegMo"
	@echo "make test    the tests; ARGS='-m \"not slow\"' is handed to pytest"
	@echo "make check   lint, format and types"
	@echo "make format  put imports and layout in order"
	@echo "make eval    accuracy on SceneQA with the small model that ships; ARGS is handed to segmo eval"
	@echo "make bench   prefill times; ARGS is handed to the benchmark"
	@echo "make clean   remove what builds and tools left behind, the environment too"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[video,eval,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/segmo demo $(ARGS)

test: $(VENV)/.installed
	$(BIN)/pytest -n 2 $(ARGS)

check: lint types

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy follows neither package-dir nor the finder of an editable install. So a plain install is checked, from inside its
# folder, which also shows a package that pyproject.toml forgot. sed turns its paths back into those of the repository.
types: $(VENV)/.installed
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-compile --target $(TYPES) .
	cd $(TYPES) && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p segmo \
		| sed -E 's,^segmo/(passes|runtime)/,\1/,'

eval: $(VENV)/.installed
	$(BIN)/segmo eval $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/prefill.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
