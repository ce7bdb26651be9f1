# make demo, make test: each sets everything up by itself (a virtual environment in .venv) and redoes nothing that is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Modules whose shape annotations (Float[Tensor, "B L D"]) are checked at run time while the tests run.
comma := ,
empty :=
CHECKED := $(addprefix seqmodels.,layers backbones heads model training data.record data.collate \
	inference.generate inference.decode inference.likelihood inference.load)
SHAPE_CHECKS := --jaxtyping-packages=$(subst $(empty) $(empty),$(comma),$(strip $(CHECKED)) beartype.beartype)

.PHONY: install demo test gpu-test lint clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

install: $(STAMP)  ## make .venv and install the project with its tests' needs (pinned by constraints.txt)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed; $(PYTHON) is {v[0]}.{v[1]}. Say make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: install    ## real DNA and real sound to trained models and their output; writes runs/demo/report.html
	$(BIN)/python experiments/demo/run.py

test: install    ## lint, types and every test that needs no GPU
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu" $(SHAPE_CHECKS)

gpu-test: install ## the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

lint: install    ## style and types only
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:           ## remove the environment and run folders
	rm -rf $(VENV) runs build *.egg-info
