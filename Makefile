# Each target sets up what it needs; .venv is made again when the lock changes.
PYTHON ?= python3
BIN := .venv/bin
# Else each program that a test starts, and each worker of pytest, compiles its modules anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup check fmt tools quick test test-all fuzz chaos demo bench migration docs dist deb deb-proof clean-root

setup: .venv/ready

.venv/ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "python3-venv is needed: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What tests run for real, and skip by name where it is not there: xmlsec1 signs for the SAML identity provider, faketime
# gives one server another clock, bubblewrap isolates runs, nginx stands in front, strace and gcc
# show what programs of a run get, curl is somebody's browser, and git knows earlier releases
TOOLS := xmlsec1 faketime bubblewrap nginx-light iproute2 procps strace gcc libc6-dev curl git
tools:
	@{ command -v xmlsec1 && command -v faketime && command -v bwrap && { command -v nginx || [ -x /usr/sbin/nginx ]; } && \
	  command -v pgrep && command -v strace && command -v gcc && command -v curl && command -v git && { command -v ip || [ -x /usr/sbin/ip ]; }; } >/dev/null || { [ "$$(id -u)" = 0 ] && \
	  echo "installing $(TOOLS) with apt-get" && \
	  apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends $(TOOLS) >/dev/null 2>&1; } || \
	  echo "not all is there, and some tests will be skipped by name: apt-get install $(TOOLS)" >&2

PYTEST := $(BIN)/pytest -n 4 --dist worksteal

# An answer within two minutes: unit tests, all declarations, and the API on SQLite, without what is slow
quick: setup
	$(PYTEST) --quick tests/unit tests/whole tests/contract tests/http

test: setup tools
	$(PYTEST)

# Those too that take minutes. They start many programs each, so few run side by side
test-all: test
	$(BIN)/pytest -n 2 --dist worksteal -m long

# Many more documents of the kinds that tests/kit/hostile.py makes than `make test` sends; FUZZ_SEED=N for others
fuzz: setup
	FUZZ_DOCUMENTS=$${FUZZ_DOCUMENTS:-20000} $(BIN)/pytest tests/http/test_fuzz.py -n 3

demo: setup
	$(BIN)/python packaging/demo/demo.py

# BENCH="--only fleet --listeners 1000 5000": some parts, and how large the fleet is
bench: setup
	$(BIN)/python packaging/bench/bench.py $(BENCH)

migration: setup
	$(BIN)/python packaging/makemigration.py

docs: setup
	$(BIN)/python packaging/makedocs.py
	$(BIN)/python packaging/settings.py server > docs/settings.md
	$(BIN)/python packaging/settings.py listener > docs/listener-settings.md

dist: setup
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w dist .

# A Debian package of the wheel, for the minor version of Python that made .venv
deb: setup
	$(BIN)/python packaging/deb/build.py

# The package in a clean root, then booted: its units under a real systemd. Needs root, debootstrap and systemd-container
deb-proof: deb
	$(BIN)/python packaging/deb/prove.py --boot dist/terrapod_*.deb

# Faults fall on real programs while runs are applied; CHAOS="--seed N --faults N --applies N"
chaos: setup
	PYTHONPATH=tests:packaging/demo $(BIN)/python -m chaos $(CHAOS)

# What README.md says first, on a minimal Debian without anything of this host: RELEASE="bookworm trixie", COMMANDS="demo",
# CLEAN_ROOT="--keep --fresh". Needs root, debootstrap and git
RELEASE := bookworm trixie
COMMANDS := demo test
clean-root:
	$(PYTHON) packaging/deb/clean_root.py $(RELEASE) --commands "$(COMMANDS)" $(CLEAN_ROOT)
