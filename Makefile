# make demo    the three-method demo on made-up data; report in runs/demo/report.html
# make test    the tests            make lint   ruff, its formatter and mypy
# make study   the demo over 5 seeds (slow)     make clean   forget .venv and caches
# make pretrain   rebuild the checkpoint that the demo starts from (hours)
#
# Each target makes what it needs in .venv; a stamp named after the hash of setup.py,
# constraints.txt and this file lets the next run start at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
KEY := $(shell cat setup.py constraints.txt Makefile | cksum | tr -d ' ')
DEMO_READY := $(VENV)/.ready-demo-$(KEY)
TEST_READY := $(VENV)/.ready-test-$(KEY)
PIP := $(PY) -m pip --disable-pip-version-check
PROMPTSOURCE := promptsource==0.2.3
PYTEST_ARGS ?=

.PHONY: help demo study pretrain test lint format install install-test clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,4p

$(VENV)/bin/python:
	@for name in "$${PYTHON:-python3.11}" python3.12 python3.13 python3 python; do \
	  if "$$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$name"; exec "$$name" -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: no Python >= 3.11 on PATH; name one with PYTHON=/path/to/python make …" >&2; exit 2

$(DEMO_READY): | $(VENV)/bin/python
	@rm -f $(VENV)/.ready-*
	$(PIP) install --quiet -c constraints.txt -e .
	$(PIP) install --quiet --no-deps --ignore-requires-python $(PROMPTSOURCE)
	@touch $@

$(TEST_READY): | $(DEMO_READY)
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

install: $(DEMO_READY)

install-test: $(TEST_READY)

demo: $(DEMO_READY)
	$(PY) -m flipped_cli.main demo

study: $(DEMO_READY)
	$(PY) -m flipped_cli.main study

pretrain: $(DEMO_READY)
	$(PY) -m flipped_cli.main pretrain

test: $(TEST_READY)
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow" --timeout 300 --timeout-method thread $(PYTEST_ARGS)

lint: $(TEST_READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TEST_READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
