# Every chore in a word; `make help` lists them. `./portico test` installs what they need.
INSTALL_DIR ?= $(if $(filter 0,$(shell id -u)),/opt/portico,$(HOME)/.local/share/portico)
PYTHON ?= $(INSTALL_DIR)/venv-test/bin/python
export PYTHONPATH := src

help: ## list the chores
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

up: ## install what is missing and start Portico
	./portico up

test: ## everything that continuous integration runs
	./portico test

fast: ## the tests that need no root: seconds
	$(PYTHON) -m pytest tests/fast -q -n auto

system: ## the tests with real users and programs (root)
	$(PYTHON) -m pytest tests/system -q

browser: ## the tests in a real Chromium
	$(PYTHON) -m pytest tests/browser -q

lint: ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: ## put the source into shape
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: ## the gateway beside its peers: 7 minutes, writes docs/benchmarks.md
	$(PYTHON) bench/gateway.py

workshop: ## 60 desktops with a live client each, Portico beside websockify and nginx, as root: 10 minutes
	$(PYTHON) bench/workshop.py --kill

lock: ## write the lock files of Python packages anew, with the newest versions that pyproject.toml allows
	/usr/bin/python3 tools/lock.py

.PHONY: help up test fast system browser lint format bench workshop lock
.DEFAULT_GOAL := help
