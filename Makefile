# make test | demo | bench | check: each one first makes the environment, once, with the pins of constraints.txt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
TYPES := build/types

.PHONY: help install browser demo test test-lmms test-vllm matrix oldest check lint plain types format docs eval bench release clean

help:
	@echo "make demo    a real clip through a Video LLM, with and without SegMo"
	@echo "make test    the tests; ARGS='-m \"not slow\"' is handed to pytest"
	@echo "make test-lmms the tests of the lmms-eval plugin, in an environment of their own with the real lmms-eval"
	@echo "make test-vllm the tests with vLLM's engine and server, in an environment of their own (3 GB, made once)"
	@echo "make matrix  the tests with the oldest, common, pinned and newest releases, one after another: hours, 6 GB at a time"
	@echo "make oldest  the tests that other releases are likeliest to break, with the oldest ones"
	@echo "make browser install Debian's chromium for the tests of the HTML report (make test does so by itself)"
	@echo "make check   lint, format and types"
	@echo "make format  put imports and layout in order"
	@echo "make docs    the documentation as a site in build/site"
	@echo "make eval    accuracy on SceneQA with the small model that ships; ARGS is handed to segmo eval"
	@echo "make bench   prefill times; ARGS is handed to the benchmark"
	@echo "make release wheel and sdist in dist, checked, and what to upload"
	@echo "make clean   remove what builds and tools left behind, the environment too"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[video,eval,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/segmo demo $(ARGS)

# The tests of the HTML report drive a real Chromium. Where none can be installed, they skip and say so.
browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null; } || echo "Chromium could not be installed: its tests will skip"; \
	else echo "no Chromium, and no apt-get as root to install it: its tests will skip"; fi

test: $(VENV)/.installed browser
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

# lmms-eval wants an older av than the other tests have, so it has an environment of its own, made once.
LMMS ?= build/environments/lmms
test-lmms: $(LMMS)/.installed
	$(LMMS)/bin/pytest tests/test_lmms.py tests/test_lmms_prompts.py $(ARGS)

$(LMMS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --editable '.[video,eval,lmms]' hypothesis num2words pytest pytest-timeout
	touch $@

test-vllm:
	$(PYTHON) tests/serving/environment.py $(ARGS)

# ENVIRONMENTS="common=python3.12 newest": some of them, or with another interpreter; ARGS is handed on (--pre, --keep).
ENVIRONMENTS ?= oldest common pinned newest
matrix: browser
	$(PYTHON) tests/environments/run.py $(ENVIRONMENTS) $(ARGS)

oldest:
	$(PYTHON) tests/environments/run.py oldest --quick $(ARGS)

check: lint types

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy and the docs follow neither package-dir nor the finder of an editable install. So they read a plain install, which
# also shows a package that pyproject.toml forgot. sed turns its paths back into those of the repository.
plain: $(VENV)/.installed
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-compile --target $(TYPES) .
	rm -rf segmo.egg-info  # in this folder it would be found before the installed one, and grow old

types: plain
	cd $(TYPES) && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p segmo \
		| sed -E 's,^segmo/(passes|runtime)/,\1/,'

docs: plain
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/mkdocs build --strict

eval: $(VENV)/.installed
	$(BIN)/segmo eval $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/prefill.py $(ARGS)

# Nothing is uploaded. A version that the changelog does not know is refused.
release: $(VENV)/.installed
	rm -rf build dist
	$(BIN)/python -m build
	rm -rf segmo.egg-info
	$(BIN)/twine check --strict dist/*
	@version="$$($(BIN)/python -c 'import segmo; print(segmo.__version__)')"; \
	grep -q "^## \[$$version\] - 20" CHANGELOG.md || { echo "CHANGELOG.md has no dated section [$$version]"; exit 1; }; \
	echo "To release $$version:"; \
	echo "  git tag -a v$$version -m 'SegMo $$version' && git push origin v$$version"; \
	echo "  twine upload" dist/*

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
