# Every target sets itself up from nothing: git, make and Python 3.11 are enough.
# A second run finds the stamp and installs nothing.

.DEFAULT_GOAL := help
SHELL := /bin/bash
STAMP := .venv/.installed
PACKAGES := cli client consistency dht engine gateway net node routing sim store wire

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An editable install knows its folder by absolute path: a moved or copied checkout must not run another one's code.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help demo test check bench package-test clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Three nodes and a client on this machine, one streamed answer
	@.venv/bin/paceline up --demo

test: $(STAMP) ## All tests
	@.venv/bin/python -m pytest

.PHONY: browser-test screenshots

browser-test: $(STAMP) ## The web page in Chromium, over a real swarm (needs Chromium)
	@.venv/bin/python -m pytest tests/e2e/page_in_chromium.py

screenshots: $(STAMP) ## The same, and the pictures in docs/ taken anew
	@SCREENSHOTS=docs/screenshots .venv/bin/python -m pytest tests/e2e/page_in_chromium.py

check: $(STAMP) ## Lint, format and strict types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@rm -rf build/types && mkdir -p build/types/paceline
	@for name in $(PACKAGES); do ln -s ../../../$$name build/types/paceline/$$name; done
	@.venv/bin/mypy $(PACKAGES:%=-p paceline.%)

bench: $(STAMP) ## Measure everything, write table and plots into docs/benchmarks
	@.venv/bin/python -m bench.table --rounds $${ROUNDS:-5}

package-test: $(STAMP) ## Build the wheel, install it into clean environments, and use both
	@.venv/bin/python -m bench.package

clean: ## Remove everything that make made, the environment included
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# constraints.txt pins torch: left to itself, pip fetches gigabytes of CUDA libraries with it.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if ! .venv/bin/python -c 'import pip' 2>/dev/null; then \
	  for python in $${PYTHON:-} python3.11 python3 python3.12 python3.13; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "make: no Python 3.11 or newer with its venv module was found." >&2; \
	    echo "      Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "Setting up .venv with $$($$found --version), once; this takes a few minutes."; \
	  $$found -m venv --clear .venv; \
	fi
	@.venv/bin/python -m pip install -c constraints.txt -e ".[node,gateway,telemetry,dev]"
	@echo "$(CURDIR)" > $@
