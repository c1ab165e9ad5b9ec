# Few words. `make` alone checks and tests.

PYTHON := .venv/bin/python

.PHONY: all setup format check test test-all quickstart clean

all: check test

setup:       ## .venv with everything for development
	bash -ec 'source scripts/environment.sh && ensure_environment dev'
	$(PYTHON) -m pre_commit install

format:      ## rewrite code in house style
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

check:       ## style, types, import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

test:        ## the fast tests
	bash scripts/test.sh

test-all:    ## all tests
	bash scripts/test.sh -m ""

quickstart:  ## the main job, to the page
	bash scripts/quickstart.sh

clean:       ## caches, not runs and not .venv
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
