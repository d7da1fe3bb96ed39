# `make demo` and `make test` need python3 (3.11 or newer) and make; the rest goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types imports format clean

demo: .venv/installed
	$(BIN)/r2jax demo

test: .venv/installed
	PYTHONPATH=.venv/aot $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: .venv/installed
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "r2jax needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] \
	  + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[train,eval,dev]"
	@# The TPU's compiler lies apart: JAX would look for a TPU at every start, and warn at length.
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps \
	  --target .venv/aot libtpu
	@touch $@
