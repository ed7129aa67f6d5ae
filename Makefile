# Two commands: `make demo` and `make test`. Each sets up .venv from this folder's own files.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types unit system gate clean
.DEFAULT_GOAL := demo

# Debian packages that some tests drive: a browser, a database server, an emulator of aarch64.
MISSING = $(shell dpkg-query -W -f '$${db:Status-Status} $${Package}\n' \
  $$(cat tests/debian-packages.txt) 2>/dev/null | grep '^installed ' | cut -d' ' -f2 \
  | sort | comm -13 - tests/debian-packages.txt)

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

test: lint types unit gate  ## what CI runs

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy -p expertile

system:
	@if [ -z "$(MISSING)" ]; then true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $(MISSING) >/dev/null; \
	else echo "Tests that need $(MISSING) will say so: sudo apt-get install $(MISSING)"; fi

unit: .venv/ready system
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Our own gate: compiled kernels against the baseline in git, then times against GATE_BASE.
GATE_BASE ?= HEAD~1
gate: .venv/ready
	$(BIN)/expertile bench gate --static --baseline bench/static.json
	@if git rev-parse -q --verify "$(GATE_BASE)^{commit}" >/dev/null; then \
	  $(BIN)/expertile bench gate --base $(GATE_BASE) --preset tiny --tokens 64 --batch 16 \
	    --op mla_decode,gemm_nt,moe_route,silu_mul --threshold 5 --suite-threshold 3 \
	    --ambiguous warn; \
	else echo "there is no $(GATE_BASE) to time against: only the static gate ran"; fi

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
