# Requires Python 3.11 or newer, git and make. Each target creates the environment .venv if it does not exist.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Tests write many small files that live for seconds: into memory where there is room (4 GiB), else where the system says
ROOMY := $(shell findmnt -no OPTIONS /dev/shm 2>/dev/null | grep -qv noexec && \
	test "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4194304 && echo /dev/shm)
unexport PYTHONDONTWRITEBYTECODE # Tests start many processes: each would compile all modules
test check lowest coverage: export TMPDIR := $(or $(TMPDIR),$(ROOMY),/tmp)

SINCE ?= $(shell git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)

.DEFAULT_GOAL := help
.PHONY: help demo check test lowest coverage lint lab docs honesty judges bench setup system lock format clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: setup  ## Run all stages on a year of New York flights
	mlcycle run

check: lint  ## Run lint, type check, changed notebooks and fast tests: a few minutes
	@echo "-- nbdev-test of changed notebooks" && git diff --name-only --diff-filter=d $(SINCE) -- 'nbs/*.ipynb' | xargs -r -n 1 -P 2 nbdev-test
	@echo "-- pytest, without the slow tests" && python -m pytest -n 2 -m "not slow"

test: lint  ## Run all tests
	@echo "-- nbdev-test" && nbdev-test --n-workers 2
	@echo "-- pytest" && python -m pytest -n 2

lowest:  ## Run the fast tests with the lowest versions of the direct dependencies, in .venv-lowest
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra test --no-annotate --no-header pyproject.toml -o .venv-lowest/requirements.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python -r .venv-lowest/requirements.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --no-deps --no-build-isolation -e .
	PATH="$(CURDIR)/.venv-lowest/bin:$$PATH" python -m pytest -n 2 -m "not slow"

coverage: setup  ## Run the tests of tests/ and report which lines of mlcycle they reach
	python -m pytest -n 2 --cov --cov-report=term

lint: setup  ## Run linter and type checker; compare notebooks and modules
	@echo "-- ruff" && ruff check . && ruff format --check tests benchmarks docs
	@echo "-- notebooks are clean and exported" && python tests/in_sync.py
	@echo "-- types" && ty check
	@echo "-- spelling" && codespell nbs docs tests benchmarks .github *.md Makefile pyproject.toml

lab: setup  ## Open the notebooks in JupyterLab
	jupyter lab nbs

docs: setup  ## Build the documentation in _docs/html
	python docs/build.py

honesty: setup  ## Test on fifty tables of noise that no score is promised which does not hold: twenty minutes
	MLCYCLE_SLOW_TESTS=1 python -m pytest -n 2 tests/modelling/test_new_rows.py

bench: setup  ## Run the benchmarks: time and scores relative to other libraries
	python benchmarks/run.py

judges: setup  ## Let programs of others judge what mlcycle writes, each in an environment of its own
	python benchmarks/judges.py

setup: .venv/ready  ## Create the environment .venv

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) was found. Say which: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	python -m pip install --quiet --require-hashes -r requirements.lock
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

system:  ## Install the system packages of some tests: a browser, Prometheus, Alertmanager, tools for images (Debian, as root)
	apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah chromium debootstrap fonts-liberation prometheus \
		prometheus-alertmanager

LOCK := uv pip compile --quiet --universal --python-version 3.11 --extra dask --extra docs --extra holidays --extra lab --extra onnx --extra postgres \
	--extra test --generate-hashes --no-annotate --no-header pyproject.toml
lock: setup  ## Update the pinned versions of all dependencies
	python -m pip install --quiet uv
	$(LOCK) --upgrade -o requirements.lock
	cp requirements.lock requirements.extras && $(LOCK) --no-strip-extras -o requirements.extras
	awk '/^[^ ]*\[/ {extra = 1} /^[^ \[]*==/ {extra = 0} extra' requirements.extras >> requirements.lock  # Older pip wants both forms
	rm requirements.extras

format: setup  ## Clean and export the notebooks, and format the code
	nbdev-clean && nbdev-export && ruff check --fix . && ruff format tests benchmarks docs

clean:  ## Remove all built files; keep runs and their workspace
	rm -rf .venv .venv-lowest _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage*
