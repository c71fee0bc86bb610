# `make demo` and `make test` need Python and make; everything else they install into .venv.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m
READY  := $(VENV)/.ready

.PHONY: demo test coverage campaign check format clean
demo: $(READY)            ## train tiny checkpoints, evaluate them with lm-eval, correlate
	$(VENV)/bin/longshort demo

test: $(READY)            ## the whole test suite
	$(RUN) pytest

coverage: $(READY)       ## the whole test suite, measured in every process it starts; fails below 95 %
	$(RUN) coverage erase
	$(RUN) coverage run -m pytest
	$(RUN) coverage combine --quiet
	$(RUN) coverage report

CASES ?= .
campaign: $(READY)        ## bad input for every command, killed sweeps, every architecture (CASES=robustness, kills, architectures)
	$(RUN) pytest -m slow -n 2 --dist loadgroup -o tmp_path_retention_policy=failed --tables results tests/slow/$(CASES)

check: $(READY)           ## lint, format check, types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(READY)          ## mend what lint and format can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .coverage .coverage.*
