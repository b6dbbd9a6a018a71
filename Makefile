# DLUNet. `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-bench
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
TABLES := table3 table4 table5 table6 table7
.PHONY: help setup demo $(TABLES) test test-full test-lowest lint format bench bench-peers clean

SEEDS ?= 0,1,2
DATA ?= phantom

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo '  make table3 … table7: tables of the paper; SEEDS=0,1,2 SCALE=cpu DATA=flare22 ROOT=FLARE22'

setup: $(STAMP)  ## Install everything into .venv, in the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first and by name: pip then installs the CPU build where the index has one
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## Synthetic abdomens, training with and without unlabelled cases, prediction, scores, report
	BIN=$(BIN) experiments/demo/run.sh

$(TABLES): $(STAMP)
	$(BIN)/python experiments/paper_tables/make_table.py $(@:table%=%) seed=$(SEEDS) data=$(DATA) \
	$(if $(ROOT),data.root=$(ROOT)) $(if $(SCALE),scale=$(SCALE)) $(OPTIONS)

test: $(STAMP)  ## The tests that take minutes at most
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-full: $(STAMP)  ## All tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile=full

test-lowest: $(LOWEST)/.installed  ## The fast tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

$(LOWEST)/.installed: pyproject.toml tests/lowest_versions.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@touch $@

lint: $(STAMP)  ## Style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Some of the measurements in benchmarks/; each script says what it measures
	$(BIN)/python benchmarks/phantom_gallery.py picture
	$(BIN)/python benchmarks/phantom_gallery.py time
	$(BIN)/python benchmarks/preparation_memory.py
	$(BIN)/python benchmarks/patch_queue.py
	$(BIN)/python benchmarks/scoring_against_surface_distance.py
	$(BIN)/python benchmarks/engine_speed.py
	test -z "$(CHECKPOINT)" || $(BIN)/python benchmarks/inference_memory.py $(CHECKPOINT)

bench-peers: $(PEERS)/.installed  ## The measurements beside the peers, in an environment of their own
	$(PEERS)/bin/python benchmarks/preparation_against_nnunet.py
	$(PEERS)/bin/python benchmarks/planning_against_nnunet.py
	$(PEERS)/bin/python benchmarks/patch_store.py
	@# CHECKPOINT: a light network trained with the paper's plan
	test -z "$(CHECKPOINT)" || $(PEERS)/bin/python benchmarks/inference_against_peers.py $(CHECKPOINT)

$(PEERS)/.installed: benchmarks/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint $< torch
	$(PEERS)/bin/python -m pip install --quiet --constraint $< nnunetv2 monai zarr nncf --editable '.[openvino,onnx]'
	@touch $@

clean:  ## Remove the environment and caches; data and runs stay
	rm -rf $(VENV) $(PEERS) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache dist
