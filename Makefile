# Two commands: `make demo` and `make test`. Each sets up .venv from this folder's own files.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types unit clean
.DEFAULT_GOAL := demo

.venv/ready: pyproject.toml Makefile
	@echo "Setting up .venv (torch for CPUs, TVM, Optuna ...): a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target .venv/triton-3.6.0 triton==3.6.0    # tests compile with this one too
	touch $@

demo: .venv/ready  ## tune on this CPU for about two minutes, then generate text with the result
	$(BIN)/expertile demo

test: lint types unit  ## what CI runs

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy -p expertile

unit: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
