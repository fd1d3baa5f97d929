# make repro: environment and pipeline. make test: environment and tests. Both set up .venv once.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: repro test test-long lint embedded publish clean

repro: $(READY)
	$(BIN)/dvc repro

test: $(READY)
	$(BIN)/pytest -m "not long"

test-long: $(READY)
	$(BIN)/pytest -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuild the embedded base from its text. Goes on where it was interrupted.
embedded: $(READY)
	$(BIN)/dvc repro --single-item --force --downstream embedded

publish: $(READY)
	$(BIN)/dvc repro publish

# `|| python3`: a machine whose Python 3.11 is called python3.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .checkpoints
