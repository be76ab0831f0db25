# Everything here works on a fresh machine: each target makes what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# Compiled on all cores, because pip uses only one. A few installed files are templates and can't be compiled.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: setup demo lab web test test-all audit bench recording clean

setup: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "LLM Lab needs Python 3.11 or later; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 3; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@$(COMPILE)
	@touch $@

# Without compiling everything: tests import only a tenth of it, which Python caches.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $(VENV)/.installed $@

demo: setup
	$(BIN)/llm-lab run configs/demo.yaml --overwrite
	@echo
	$(BIN)/llm-lab chat checkpoints/demo --prompt "Tom has 6 apples. First he finds 9 more. How many apples does Tom have now?"
	@echo
	@echo "You trained this model. Open the wizard with: make lab"

lab: setup
	$(BIN)/llm-lab

web: setup
	$(BIN)/llm-lab web

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/.installed-test
	$(PYTEST)

audit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -rs tests/test_audit.py

recording: $(VENV)/.installed-test
	PYTHONPATH=$(CURDIR) $(BIN)/python docs/record.py

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
