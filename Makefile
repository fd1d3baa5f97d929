# make repro: environment and pipeline. make test: environment and tests. Both set up .venv once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

# The stages of dvc.yaml run `python`: it must be this environment's, activated or not.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-long lint embedded curve export plots publish clean

repro: $(READY)
	$(BIN)/dvc repro

# Two workers of one thread each; a file's tests stay in one worker and share what they build.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: $(READY)
	$(BIN)/pytest -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuild the embedded base from its text. Goes on where it was interrupted.
# Not through `dvc repro`: of a frozen stage that only verifies the outputs, even with --force.
embedded: $(READY)
	$(BIN)/python stages/embedded.py
	$(BIN)/dvc commit --force embedded

# The learning curve: trains a router for each number of queries.
curve: $(READY)
	$(BIN)/dvc repro optional/dvc.yaml:curve

# The plots as a page that needs no internet: dvc_plots/index.html.
plots: $(READY)
	$(BIN)/python -m router.plots_page
	$(BIN)/dvc plots show

# The router for llama.cpp, Ollama and ONNX Runtime. Compiles llama.cpp once: minutes, and a C++ compiler.
export: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,export]"
	$(BIN)/dvc repro optional/dvc.yaml:export_gguf optional/dvc.yaml:export_onnx

# Package model and data, and upload them unless params.yaml says hub.dry_run: true.
publish: $(READY)
	$(BIN)/dvc repro optional/dvc.yaml:publish

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m router.plots_page
	touch $@

clean:
	rm -rf .venv .checkpoints
