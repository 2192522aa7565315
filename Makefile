# Everything a contributor or a CI needs; `make` alone lists it. The environment is `.venv`, installed from
# requirements.lock with hashes, so that two checkouts run the same bytes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# A process that crashes in native code says where.
export PYTHONFAULTHANDLER := 1
.PHONY: help venv prometheus demo demo-fast test test-unit test-integration lint format bench lock clean

# python3.11 when there is one that runs, else python3; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
UV ?= uv
BIN := .venv/bin
STAMP := .venv/.installed
PROMETHEUS := .tools/prometheus/promtool
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## install the locked environment and this package into .venv (does nothing when it is current)

# The package itself is built by the locked setuptools: a build environment of pip's own would be downloaded unpinned.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; call make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

prometheus: $(PROMETHEUS) ## bring Debian's Prometheus into .tools for the tests; nothing is installed

# Unpacked and not installed: a service of the machine's own is no business of tests. Without apt those tests are skipped.
$(PROMETHEUS):
	@mkdir -p $(@D) && into=$$(realpath $(@D)) && from=$$(mktemp -d) && trap 'rm -rf "$$from"' EXIT && cd "$$from" && \
	if command -v promtool prometheus >"$$from/there"; then ln -sf $$(cat there) "$$into"; \
	elif { timeout 90 apt-get download -qq prometheus || { timeout 120 apt-get update -qq && timeout 90 apt-get download -qq prometheus; }; } 2>"$$from/said" \
	  && dpkg-deb -x prometheus_*.deb . ; then mv usr/bin/promtool usr/bin/prometheus "$$into"; \
	else cat "$$from/said"; echo "no Prometheus: its tests will be skipped"; fi

demo: $(STAMP) ## a year of flights: drift, retraining, canary, rollback; five to eight minutes
	$(BIN)/mlops-ray demo

demo-fast: $(STAMP) ## the demo's short form
	$(BIN)/mlops-ray demo --fast

test: test-unit test-integration ## unit tests, then integration tests on a local Ray (not the slow ones)

test-unit: $(STAMP) prometheus ## tests of the parts that decide; no Ray
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit -m "not slow"

test-integration: $(STAMP) prometheus ## tests on a local Ray and real servers, then on clusters of their own
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/integration -m "not slow"
	# A process for each: Ray Serve keeps what it knows of a cluster until the process ends. 5: all of a file is slow.
	@status=0; for file in tests/loop/test_*.py; do \
	  $(BIN)/python -m pytest -q $$file -m "not slow" || { code=$$?; [ $$code -eq 5 ] || status=1; }; \
	done; exit $$status

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks but those on a cluster and of serving (docs/serving.md); hours
	@for script in $$(grep -l __main__ benchmarks/*.py benchmarks/loop/*.py benchmarks/monitor/*.py benchmarks/rollout/*.py | grep -v live); do \
	  echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script; done

lock: ## resolve requirements.lock again from pyproject.toml (needs uv); keeps pins that still fit
	$(UV) pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --quiet -o requirements.lock

clean: ## remove caches and build products; .venv and .mlops_ray (your models and state) stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
