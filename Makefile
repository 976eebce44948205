# Two commands matter: `make demo` shows the factory at work, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo plan test unit live lint format docs bench sim clean

help: ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## run the first factory: make, release, serve and bill a real model
	@$(PYTHON) .ci/setup.py demo
	@$(BIN)/python examples/first/demo.py

plan: ## rehearse ten minutes of the reference site: 6,912 accelerators, 2 million requests (report in day.html)
	@$(PYTHON) .ci/setup.py demo
	@$(BIN)/tokenmill plan examples/taiwan/factory.yaml --traffic examples/taiwan/day.yaml --duration 10m --report day.html

test: lint unit live ## lint, types, and every test (needs what .ci/run installs for the browser and PostgreSQL ones)

lint:
	@$(PYTHON) .ci/setup.py dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: ## tests that start no process
	@$(PYTHON) .ci/setup.py dev
	$(BIN)/pytest -m "not live and not browser" -n 2

live: ## tests with real processes, a real model, a real browser
	@$(PYTHON) .ci/setup.py dev
	@$(PYTHON) .ci/setup.py apart
	$(BIN)/pytest -m "(live or browser) and not model" -n 2 --dist loadfile
	$(BIN)/pytest -m "(live or browser) and model"

format: ## let the tools have their way with white space
	@$(PYTHON) .ci/setup.py dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sim: ## live a hundred thousand seeded worlds through (hours); SEEDS=0..300 for fewer
	@$(PYTHON) .ci/setup.py dev
	$(BIN)/tokenmill sim --seeds $(or $(SEEDS),0..100000) --workers $(shell nproc)

clean: ## remove what the commands above made
	rm -rf .venv .venv-clients demo-factory
