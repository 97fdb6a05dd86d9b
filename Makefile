# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the benchmarks find MNIST (make bench DATA_DIR=...).
DATA_DIR ?= ../shared/data/mnist

.PHONY: help run test check bench clean

help:
	@echo "make run    install into $(VENV), then BADGE against random on real digits"
	@echo "make test   install into $(VENV), then linters, types and the whole test suite"
	@echo "make bench  install into $(VENV), then every figure the project claims"
	@echo "make clean  remove $(VENV) and caches; runs/ stays"

run: $(VENV)/.run-installed
	$(BIN)/fastbadge run

test: $(VENV)/.dev-installed check
	$(BIN)/python -m pytest --cov --numprocesses=2

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/main_job.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/query.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python benchmarks/disk.py
	$(BIN)/python benchmarks/report.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: $(BIN)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev-installed: $(BIN)/python requirements.txt requirements-dev.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.run-installed

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
