# Every target makes the environment that it needs. Nothing has to be installed before but
# python3 (3.11 or newer) and make. To use another interpreter: make PYTHON=python3.13 test

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-live test test-one lint bench bench-quick bench-fleet explore proof mutate docs picture clean

help:
	@echo "make demo       a fleet of processes picks up probes from a real MongoDB (30 s)"
	@echo "make demo-live  the same, until Ctrl-C"
	@echo "make test       the tests, on $(PYTHON) and on the newest other Python found"
	@echo "make test-one   the tests on $(PYTHON) only"
	@echo "make lint       ruff and mypy"
	@echo "make bench      what a probe costs, beside other libraries, on two Pythons (10 min)"
	@echo "make bench-quick the same on $(PYTHON) only, in rough (1 min)"
	@echo "make bench-fleet what a fleet of up to 10,000 processes costs its MongoDB (5 min)"
	@echo "make explore    other packages' own tests, with probes on everything they define"
	@echo "                (all known ones take about half an hour; make explore ARGS=--quick: one minute)"
	@echo "make proof      the property, thread and memory tests and random programs on $(PYTHON), for long (20 min)"
	@echo "make mutate     small mistakes in the core, a random sample: which ones no test finds (20 min)"
	@echo "make docs       the site of docs/, in build/docs; a dead link is an error"
	@echo "make picture    the picture in README anew, of a real run"
	@echo "make clean      remove environments, caches and builds"

demo: $(VENV)/.has-demo
	@$(BIN)/python -m diagnose_mongo.demo

demo-live: $(VENV)/.has-demo
	@$(BIN)/python -m diagnose_mongo.demo --live

# The search runs before the first tests, so that what will be tested is said at the start. All
# runs at once, since much of it is waiting for servers to come and go: the folders that are about
# Python on both, those about documents, servers and commands on one (`make test-one` has all).
ABOUT_PYTHON := tests/engine tests/instruments tests/breakpoints
ABOUT_SERVERS := tests/specs tests/fleet tests/cli tests/server tests/whole
test: $(VENV)/.has-test
	@other="$$($(BIN)/python tools/pythons.py)" || exit 1; \
	mine="$$($(BIN)/python --version)"; \
	if [ -z "$$other" ]; then \
		echo "Testing on $$mine; no other Python from 3.11 to 3.15 was found on this machine"; \
		$(MAKE) --no-print-directory test-one VENV="$(VENV)" || exit 1; \
		echo "Tested on $$mine only: no other Python was found"; \
		exit 0; \
	fi; \
	minor="$$("$$other" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
	theirs="$$("$$other" --version)"; \
	echo "Testing on $$mine and on $$theirs ($$other) at once; what the latter prints comes later"; \
	$(MAKE) --no-print-directory "$(VENV)-$$minor/.has-test" VENV="$(VENV)-$$minor" \
		PYTHON="$$other" || exit 1; \
	output="$$(mktemp -d)"; \
	$(MAKE) --no-print-directory test-one VENV="$(VENV)-$$minor" PYTHON="$$other" \
		TESTS='$(ABOUT_PYTHON)' >"$$output/theirs" 2>&1 & \
	theirs_job=$$!; \
	$(MAKE) --no-print-directory test-one VENV="$(VENV)" \
		TESTS="$(ABOUT_SERVERS) -n 2 --dist loadfile" >"$$output/programs" 2>&1 & \
	programs_job=$$!; \
	trap 'kill $$theirs_job $$programs_job 2>/dev/null; rm -rf "$$output"' EXIT; \
	failed=""; \
	$(MAKE) --no-print-directory test-one VENV="$(VENV)" TESTS='$(ABOUT_PYTHON)' || failed="$$mine"; \
	wait $$programs_job || failed="$$failed $$mine (documents, servers, commands)"; \
	cat "$$output/programs"; \
	wait $$theirs_job || failed="$$failed $$theirs"; \
	cat "$$output/theirs"; \
	if [ -n "$$failed" ]; then echo "Failed on: $$failed"; exit 1; fi; \
	echo "Tested on $$mine and on $$theirs"

# The properties, the threads, the memory tests and random programs, for long: about a quarter of
# an hour each.
proof: $(VENV)/.has-test
	@echo "== $$($(BIN)/python --version) ($(VENV))"
	@DIAGNOSE_TEST_EXAMPLES=1000 DIAGNOSE_TEST_SECONDS=20 DIAGNOSE_TEST_REPEATS=44 \
		$(BIN)/python -m pytest -q -o timeout=0 $(foreach each,properties threads memory random_programs \
		combinations containment time_limits,tests/engine/test_$(each).py)

# In copies of the tree. ARGS="--minutes 5 --seed 7 --modules handlers" for less.
mutate: $(VENV)/.has-test
	@$(BIN)/python tools/mutate.py $(ARGS)

test-one: $(VENV)/.has-test
	@echo "== $$($(BIN)/python --version) ($(VENV))"
	@$(BIN)/python -m pytest -q $(TESTS)

# Twice: 3.11 and 3.12+ watch the inside of a function with different code.
lint: $(VENV)/.has-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --python-version 3.11
	$(BIN)/mypy --python-version 3.13

docs: $(VENV)/.has-docs
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo "build/docs/index.html"

picture: $(VENV)/.has-test
	@$(BIN)/python tools/picture.py

bench: $(VENV)/.has-bench
	@other="$$($(BIN)/python tools/pythons.py)" || exit 1; \
	second=""; \
	if [ -n "$$other" ]; then \
		minor="$$("$$other" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
		second="$(VENV)-$$minor"; \
		$(MAKE) --no-print-directory "$$second/.has-bench" VENV="$$second" PYTHON="$$other" || exit 1; \
	fi; \
	$(BIN)/python benchmarks/overhead.py --python $(BIN)/python $${second:+--python "$$second/bin/python"}

bench-fleet: $(VENV)/.has-test
	@$(BIN)/python benchmarks/fleet.py $(or $(ARGS),100 1000 10000)

bench-quick: $(VENV)/.has-bench
	@$(BIN)/python benchmarks/overhead.py --quick

# It makes environments of its own, and this library comes from the tree: nothing to install.
explore: | $(BIN)/python
	@$(BIN)/python benchmarks/explore.py $(ARGS)

clean:
	rm -rf .venv .venv-3.* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A file says what an environment has: it is installed anew when pyproject.toml changes.

$(VENV)/.has-bench: EXTRAS :=
$(VENV)/.has-demo: EXTRAS := demo
$(VENV)/.has-test: EXTRAS := test
$(VENV)/.has-lint: EXTRAS := test,lint
$(VENV)/.has-docs: EXTRAS := docs

$(VENV)/.has-%: pyproject.toml | $(BIN)/python
	@echo "Installing what is needed into $(VENV)$(if $(EXTRAS), ($(EXTRAS)))"
	@$(PIP) install --editable '.$(EXTRAS:%=[%])'
	@touch $@

# A half-made environment would look like a whole one the next time.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "make: no '$(PYTHON)' found; diagnose needs Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(9 if sys.version_info < (3, 11) else 0)' || { \
		case $$? in \
			9) echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1);" \
				"diagnose needs 3.11 or newer" >&2 ;; \
			*) echo "make: '$(PYTHON)' does not run" >&2 ;; \
		esac; \
		echo "make: if another one is there, name it: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }
