# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the benchmarks find MNIST (make bench DATA_DIR=...).
DATA_DIR ?= ../shared/data/mnist

.PHONY: help run test test-label-studio check docs browser bench clean

help:
	@echo "make run    install into $(VENV), then BADGE against random on real digits"
	@echo "make test   install into $(VENV), then linters, types and the whole test suite"
	@echo "make test-label-studio  install Label Studio into .venv-label-studio (1 GB) and test with it"
	@echo "make docs   install into $(VENV), then the docs site in docs/_build/index.html"
	@echo "make bench  install into $(VENV), then every figure the project claims"
	@echo "make clean  remove $(VENV) and caches; runs/ stays"

run: $(VENV)/.run-installed
	$(BIN)/fastbadge run

test: $(VENV)/.dev-installed check docs browser
	$(BIN)/python -m pytest --cov --numprocesses=2

test-label-studio: $(VENV)/.dev-installed .venv-label-studio/.installed
	$(BIN)/python -m pytest -m label_studio tests/test_label_studio_server.py

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev-installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

# The report is tested in Chromium where there is one; on a CI machine (CI is set, root, apt) it is
# installed for that. Without it these tests skip and say so.
browser:
	@if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		! command -v chromium >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null || \
		echo "chromium could not be installed: the browser tests will skip"; fi

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/main_job.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/trials.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/query.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python benchmarks/disk.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/processes.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/label.py --data-dir $(DATA_DIR)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: $(BIN)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev-installed: $(BIN)/python requirements.txt requirements-dev.txt requirements-docs.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	# Apart: beside a CPU build of torch, torchvision breaks whatever looks for it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/timm timm==1.0.31 torchvision==0.28.0
	@touch $@ $(VENV)/.run-installed

# A venv of its own: it pins half a hundred packages, numpy among them.
.venv-label-studio/.installed: Makefile
	$(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/python -m pip install --quiet --disable-pip-version-check \
		label-studio==1.23.2
	@touch $@

clean:
	rm -rf $(VENV) .venv-label-studio docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
