# make demo   train on real digits and show what came out
# make test   every check there is: style, types, tests, doctests, documentation
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

# One thread per process: tests run side by side, and small tensors gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)
# The tests build the documentation, too. The theme's advertisement for its successor is no warning of ours.
MKDOCS := NO_MKDOCS_2_WARNING=1 TQDM_DISABLE=1 $(BIN)/mkdocs build --strict

.PHONY: help demo test slow docs bench lint clean

help:
	@echo "make demo    install into $(VENV) and run the demonstration (about a minute on two cores)"
	@echo "make test    install into $(VENV) and run every check"
	@echo "make slow    the tests that take long"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   run the benchmarks"
	@echo "make clean   remove $(VENV) and everything built"

demo: $(VENV)/.igr-experiments
	$(BIN)/igr demo

test: lint
	$(PYTEST)

lint: $(VENV)/.igr-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

slow: $(VENV)/.igr-dev
	$(PYTEST) -m slow --timeout 3600

docs: $(VENV)/.igr-dev
	$(ONE_THREAD) $(MKDOCS)

bench: $(VENV)/.igr-dev
	$(BIN)/python benchmarks/run.py --json benchmarks.json

clean:
	rm -rf $(VENV) build dist site docs/gallery docs/tutorials .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps say which extra is installed; they go stale when the requirements change.
$(VENV)/.igr-experiments: EXTRA := experiments
$(VENV)/.igr-dev: EXTRA := dev
$(VENV)/.igr-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "igr needs Python 3.10 or newer, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing);" \
			"name another one: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
