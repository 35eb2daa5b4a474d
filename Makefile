# The two commands of a newcomer are `make demo` and `make test`; each makes .venv when it is missing.

PYTHON ?= python3
VENV ?= .venv
installed := $(VENV)/.installed

.PHONY: help demo test lint clean

help:
	@echo "make demo   prepare, train, predict, evaluate and report on synthetic scans; writes demo/"
	@echo "make test   run the tests"
	@echo "make lint   check style, formatting and types"
	@echo "make clean  remove $(VENV) and caches; data, runs and the demo stay"
	@echo "PYTHON=python3.11 chooses the interpreter, VENV=folder the virtual environment."

demo: $(installed)
	$(VENV)/bin/medssl demo --out demo

# Two processes halve the time; what the tests start would otherwise take all cores each.
test: $(installed)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(installed)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The stamp is written last, so an installation that was cut short starts again.
$(installed): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "The pinned versions need Python 3.11 or newer, found " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
