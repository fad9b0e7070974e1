# initwell: `make demo` and `make test` are all that a fresh clone needs (Python 3.11+ and make).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One torch thread a process: two processes share two cores, and small layers run slower with two threads each.
export OMP_NUM_THREADS ?= 1
JOBS   ?= 2

.PHONY: install demo test test-slow lint types format reproduce bench bench-predict clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/initwell demo --out runs/demo

test: lint types
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce: $(STAMP)
	$(BIN)/initwell reproduce --all --quick --out runs/reproduce

bench: $(STAMP)
	$(BIN)/python scripts/bench.py

bench-predict: $(VENV)/.with-bench
	$(BIN)/python scripts/bench_predict.py --jobs $(JOBS)

$(VENV)/.with-bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache runs dist build
