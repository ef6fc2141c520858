# Every target works in a fresh checkout: the environment is .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers, one thread each (more threads than cores wait for one another, five times as long): a file of tests stays with one worker, so that its fixtures are made once.
WORKERS := -n 2 --dist loadfile
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test test-all soak fuzz lint bench bench-reconstruction bench-quality docs clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP) ## the main job on this machine: simulated microscope, daemon, live counts
	$(BIN)/wbcd demo

test: $(STAMP) ## the tests (under 12 minutes on 2 cores)
	$(ONE_THREAD) $(BIN)/pytest -q $(WORKERS)

test-all: $(STAMP) ## the tests and the slow rest
	$(ONE_THREAD) $(BIN)/pytest -q $(WORKERS) -m "not benchmark and not gpu"

MINUTES ?= 60
soak: $(STAMP) ## the daemon at full rate, killed at random, its ledger compared with the truth (MINUTES=60)
	$(BIN)/python tests/soak/soak.py --minutes $(MINUTES) --out soak-output-$$(date +%Y%m%d-%H%M%S)

FILES ?= 20000
FIRST ?= 0
fuzz: $(STAMP) ## spoiled files of every format through the real line: four minutes on two idle cores (FILES=20000 FIRST=0; resumes)
	$(BIN)/python tests/fuzz/run_fuzz.py --files $(FILES) --first $(FIRST) --out build/fuzz-$(FIRST)

lint: $(STAMP) ## format, lint, types, architecture
	$(BIN)/ruff format --check wbcd tests docs alembic
	$(BIN)/ruff check wbcd tests docs alembic
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## the benchmarks behind docs/benchmarks.md
	$(BIN)/pytest -q -s -m benchmark tests/benchmarks

bench-reconstruction: $(STAMP) ## the reconstruction against exact scattering: table, plots, others beside (hours; resumes)
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_reconstruction.py $(ARGS)

bench-quality: $(STAMP) ## each defect swept in strength: detection, limits, bias of what passes (resumable)
	$(BIN)/pytest -q -s -m benchmark tests/benchmarks/test_quality_sweep.py

docs: $(STAMP) ## check the documentation: links, and pages that follow from the code
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
