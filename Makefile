# Everything runs from the checkout, in a virtual environment of its own. Needed: make, and Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin

# Name another Python with `make run PYTHON=/path/to/python`. Else the first of these that is new enough is taken.
PYTHON :=
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

# Touched when everything in the lock of the same name is installed: a half-finished installation has none and is repaired.
LOCAL := $(VENV)/local.installed
DEV := $(VENV)/dev.installed

# Tools that need much of their own have virtual environments of their own, each with a lock of its name.
TOOLS := $(VENV)/tools

# Each process of the tests has services of its own. They start hundreds of programs: all may use what is compiled already.
PARALLEL := --numprocesses auto --dist worksteal
WITH_BYTECODE := env -u PYTHONDONTWRITEBYTECODE

# Where pyenv has its Pythons, which are not on PATH.
PYENV_VERSIONS := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions

# What meets the versions of the dependencies: SQLAlchemy, Celery, redis-py, Flask and Flask-Mail, pydantic, limits.
CORE := tests/unit $(wildcard tests/integration/test_store*.py tests/integration/test_schema*.py tests/integration/test_intake*.py)
CORE += tests/integration/test_throttle.py tests/integration/test_smtp.py tests/integration/test_flask_mail.py
CORE += tests/integration/test_workers_in_a_process.py tests/acceptance/test_celery.py tests/acceptance/test_delivery.py

# The Python of a virtual environment can go away with an upgrade of the system. Then it is set up anew.
BROKEN := $(shell $(BIN)/python -c "" 2>/dev/null || echo set-up-anew)

.PHONY: help setup run test test-min test-all coverage bench chaos soak fuzz flask-mail-suite check lint types public-types layers audit lock package release clean set-up-anew

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(DEV) ## Set up the virtual environment with all tools of the developers

run: $(LOCAL) ## Start the local stack: broker, SMTP inbox, worker, web (PORT and MAIL_PORT choose other ports)
	@exec $(BIN)/python -m devstack

test: $(DEV) ## Run the tests (ARGS="-k inbox" for some of them, ARGS="-n 0" for all in one process)
	$(WITH_BYTECODE) $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-min: $(TOOLS)/lowest/installed ## Run the core of the tests with the lowest versions that pyproject.toml allows (CORE=tests for all)
	$(WITH_BYTECODE) $(TOOLS)/lowest/bin/python -m pytest $(PARALLEL) $(CORE) $(ARGS)

test-all: ## Run the tests on every Python from 3.11 to 3.14 that is found here
	@for version in 3.11 3.12 3.13 3.14; do \
		python=$$(for one in python$$version $(PYENV_VERSIONS)/$$version.*/bin/python; do \
			"$$one" -c "" 2>/dev/null && echo "$$one" && break; done); \
		[ "$$python" ] || { echo "Python $$version is not installed here: left out."; continue; }; \
		$(MAKE) --no-print-directory test VENV=$(TOOLS)/python$$version PYTHON="$$python" || failed="$$failed $$version"; \
	done; [ -z "$$failed" ] || { echo "The tests failed on Python$$failed." >&2; exit 1; }

coverage: $(DEV) ## Run the tests, and print how much of mailer/ they execute, in all processes (HTML: .coverage.html)
	$(BIN)/python -m coverage erase
	$(WITH_BYTECODE) $(BIN)/python -m coverage run -m pytest $(PARALLEL) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report

bench: $(DEV) ## Measure Mailer beside its peers, in half an hour (ARGS="--help" for parts of it)
	$(BIN)/python -m bench $(ARGS)

chaos: $(DEV) ## Inject faults into all services for an hour, and print the results (ARGS="--help" for parts of it)
	$(BIN)/python -m tests.chaos $(ARGS)

soak: $(DEV) ## Let mail flow for an hour with faults, and check that no resource grows (ARGS="--minutes 5" for less)
	$(BIN)/python -m tests.chaos.soak $(ARGS)

fuzz: $(TOOLS)/fuzz/installed ## Fuzz the code that parses and writes mail, ten minutes a target (ARGS="--help" for some)
	$(TOOLS)/fuzz/bin/python -m tests.fuzz $(ARGS)

flask-mail-suite: $(DEV) ## Run the tests of Flask-Mail itself with our Mail (CLONE=folder of a clone of its repository)
	@$(BIN)/python -m tests.flask_mail_suite "$(CLONE)"

check: lint types layers ## Run all checks of the source

lint: $(DEV) ## Check the style
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(DEV) ## Check the types
	$(BIN)/python -m mypy
	@for example in examples/*/; do \
		(cd $$example && MYPYPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m mypy --config-file $(CURDIR)/pyproject.toml \
			--cache-dir $(CURDIR)/.mypy_cache .) || failed=yes; \
	done; [ -z "$$failed" ]

# The python on PATH tells pyright the packages. --ignoreexternal: Celery, which has no types, is not our business.
public-types: $(TOOLS)/pyright/installed ## Check that pyright knows all types, and agrees on the calls in tests/typing
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(TOOLS)/pyright/bin/basedpyright --ignoreexternal --verifytypes mailer
	PATH="$(CURDIR)/$(BIN):$$PATH" $(TOOLS)/pyright/bin/basedpyright --level error tests/typing

layers: $(DEV) ## Check that a module imports only modules above it
	$(BIN)/lint-imports

audit: $(TOOLS)/audit/installed ## See whether a pinned dependency has a known vulnerability
	$(TOOLS)/audit/bin/python -m requirements.audit

lock: ## Pin the dependencies of pyproject.toml anew (needs uv; ARGS=--upgrade takes the newest)
	@command -v uv >/dev/null || { echo "make lock needs uv: install it, for example with pipx install uv." >&2; exit 1; }
	$(COMPILE) --all-extras --group dev --group extensions -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt -o requirements/package.txt
	$(COMPILE) --extra inbox --extra postgres --extra web --group example --group devstack -c requirements/dev.txt -o requirements/local.txt
	$(COMPILE) --extra dkim --extra flower --extra oauth --extra postgres --extra socks --extra web --group example -c requirements/dev.txt -o requirements/deploy.txt
	$(COMPILE) --group fuzz -c requirements/dev.txt -o requirements/fuzz.txt
	$(PIN) --resolution lowest-direct pyproject.toml --all-extras --group dev -o requirements/lowest.txt
	$(PIN) --group audit -o requirements/audit.txt
	$(PIN) --group pyright -o requirements/pyright.txt
	$(PIN) --group release -o requirements/release.txt
	$(PIN) bench/peers.in -o bench/peers.txt

PIN = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(ARGS)
COMPILE = $(PIN) pyproject.toml

# The environments have the locked dependencies of the package, each with its hash. The second one has the extra "inbox" as well.
package: $(TOOLS)/release/installed $(TOOLS)/package/installed $(TOOLS)/local/installed ## Build wheel and sdist in dist/, and try both in environments of their own
	rm -rf dist
	$(TOOLS)/release/bin/python -m hatchling build
	$(TOOLS)/release/bin/python -m twine check --strict dist/*
	$(TOOLS)/release/bin/python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist/from-sdist dist/*.tar.gz
	$(TOOLS)/package/bin/python -m pip install --quiet --force-reinstall --no-index --no-deps dist/*.whl
	$(TOOLS)/local/bin/python -m pip install --quiet --force-reinstall --no-index --no-deps dist/from-sdist/*.whl
	rm -r dist/from-sdist
	$(TOOLS)/package/bin/python -m pip check
	$(TOOLS)/local/bin/python -m pip check
	TEST_PACKAGES=dist TEST_PYTHON=$(TOOLS)/package/bin/python TEST_PYTHON_WITH_INBOX=$(TOOLS)/local/bin/python \
		$(BIN)/python -m pytest tests/acceptance/test_packages.py tests/acceptance/test_init.py $(TEN_LINES)
	TEST_PACKAGES=dist TEST_PYTHON=$(TOOLS)/local/bin/python $(BIN)/python -m pytest $(TEN_LINES)

TEN_LINES = tests/acceptance/test_readme.py::test_the_ten_lines_deliver_a_mail

release: $(TOOLS)/release/installed ## Check that this commit is a tagged version, then make package; it uploads nothing
	@tag=v$$($(TOOLS)/release/bin/python -m hatchling version); \
	[ -z "$$(git status --porcelain)" ] || { echo "Commit everything first: a release is made from a commit." >&2; exit 1; }; \
	git tag --points-at HEAD | grep -qx "$$tag" || { \
		echo "This commit has no tag $$tag, which mailer.__version__ asks for: git tag $$tag, or change the version." >&2; exit 1; }
	@$(MAKE) --no-print-directory package
	@echo "dist/ is ready. Upload it with: $(TOOLS)/release/bin/python -m twine upload dist/*"

clean: ## Remove the virtual environment and the caches; the mails in instance/ stay
	rm -rf $(VENV) bench/.peers .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/%.installed: requirements/%.txt $(BROKEN)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(CREATE_VENV); }
	@echo "Installing what $< lists; this takes a moment."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(TOOLS)/%/installed: requirements/%.txt $(DEV)
	@echo "Installing what $< lists; this takes a moment."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

define CREATE_VENV
for python in $(PYTHONS) none; do \
	$$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && break; \
done; \
if [ $$python = none ]; then \
	echo "Mailer needs Python 3.11 or newer ($(PYTHONS): not found, or older): install one, or name it with PYTHON=/path/to/python." >&2; \
	exit 1; \
fi; \
if ! $$python -c "import ensurepip, venv" 2>/dev/null; then \
	echo "$$python can't make virtual environments: on Debian and Ubuntu install the package python3-venv, then call make again." >&2; \
	exit 1; \
fi; \
echo "Setting up $(VENV) with $$($$python --version)."; \
$$python -m venv --clear $(VENV)
endef
