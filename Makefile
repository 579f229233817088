# make run · make test · make check · make drill · make bench: the same for people and CI. `make help` lists them.
#
# Needs Python 3.11 or newer and GNU make. Python packages are installed into .venv, from the hashed lock files; programs
# that only the tests use (a browser, a proxy, Node.js) by tests/setup, where it may install them.
# Tests mostly wait, for servers that start and for clocks: four processes at once suit two cores. Another number:
# make test PROCESSES=6. ARGS= is handed on:  make run ARGS='-- --rate 20:20'   make test ARGS='-k standalone'

PYTHON ?= python3
ARGS ?=
PROCESSES ?= 4

# The tests start the service's programs some three hundred times: compiled once, they start sooner.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run setup test test-containers fuzz check bench bench-full drill lock clean

help:
	@echo 'make run     start everything on this machine: Temporal and its UI, the worker, a simulator if there is no key'
	@echo 'make test    run the tests; as root on Debian, install first what they need beside Python'
	@echo 'make test-containers   both commands of the README on a new Debian, in a container (root; 5 minutes)'
	@echo 'make fuzz    bytes made up for every parser that faces strangers, 5 minutes each (Linux)'
	@echo 'make check   ruff, mypy and the import contracts'
	@echo 'make drill   break everything in every way we know, and have the outcome audited (less than 10 minutes)'
	@echo 'make bench   run the benchmarks; make bench-full the long ones, too (20 minutes)'
	@echo 'make lock    write the lock files anew from pyproject.toml (needs uv)'
	@echo 'make clean   remove .venv and the caches; jobs in .chatjobs stay'

# Make may be killed as well: then there is nobody left to hear a Ctrl-C.
run: .venv/service
	@$(BIN)/python -m local --end-with-parent $(ARGS)

setup:
	@tests/setup

test: setup .venv/dev .venv/upstreams/made .venv/real_model/made
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

test-containers: .venv/dev
	$(BIN)/python -m pytest tests/containers --verbose $(ARGS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-logo

drill: .venv/dev
	$(BIN)/python starter.py drill $(ARGS)

bench: .venv/dev
	$(BIN)/python -m bench $(ARGS)

bench-full: .venv/dev
	$(BIN)/python -m bench --full $(ARGS)

# One environment and three stamps in it, so that `make run` installs only what the service needs. A changed lock file
# makes the environment anew: what is no longer locked must not be found by accident.
.venv/made: requirements.lock requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'Python 3.11 or newer is needed; $(PYTHON) is' "$$($(PYTHON) --version 2>&1)."; \
	    echo 'Install it, or name another one:  make run PYTHON=python3.12'; exit 1; } >&2
	@$(PYTHON) -m venv --clear .venv || { \
	    echo 'The environment was not made; on Debian and Ubuntu:  apt-get install python3-venv'; exit 1; } >&2
	@touch $@

.venv/service: .venv/made
	@echo 'Installing what the service needs into .venv (once; about half a minute) …'
	@$(PIP) --requirement requirements.lock
	@touch $@

.venv/dev: .venv/made
	@echo 'Installing what tests and checks need into .venv (once; about a minute) …'
	@$(PIP) --requirement requirements-dev.lock
	@touch $@

# The fuzzer has no build for every platform, and only `make fuzz` needs it.
.venv/fuzz: .venv/dev tests/fuzz/requirements.lock
	@$(PIP) --requirement tests/fuzz/requirements.lock
	@touch $@

# Others' fakes of chat APIs, which the service is tested against, have an environment of their own: what they depend on
# (an event loop, for one) must not change what the tests of the service run on.
.venv/upstreams/made: .venv/made tests/upstreams/requirements.lock
	@$(PYTHON) -m venv --clear .venv/upstreams
	@.venv/upstreams/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
	    --requirement tests/upstreams/requirements.lock
	@touch $@

# A small language model and what runs it, for tests/real_model. Where it cannot be had, there is no stamp and no error:
# its tests are skipped, and the next `make test` tries again.
.venv/real_model/made: .venv/made tests/real_model/model.lock tests/real_model/package-lock.json
	@$(BIN)/python -m tests.real_model.install

# --no-header, because the header would name the index; --universal, because one file serves all platforms.
lock:
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 --group service pyproject.toml \
	    -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 --group dev pyproject.toml \
	    -o requirements-dev.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 tests/upstreams/requirements.in \
	    -o tests/upstreams/requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 tests/fuzz/requirements.in \
	    -o tests/fuzz/requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
