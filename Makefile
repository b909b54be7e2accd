# Every target works on a clean clone: what it needs is installed into .venv first.
PYTHON ?= python3
BIN := .venv/bin

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
FAST := -m "not ray and not slow"

.PHONY: demo test test-fast coverage lint format schema docs bench chaos chaos-network clean

demo: .venv/installed  ## train, attack and report on the demo sweep
	$(BIN)/sweeper launch

test: .venv/installed  ## the whole suite
	$(PYTEST)

test-fast: .venv/installed  ## the tests that neither start Ray nor are slow, in under two minutes on two cores
	$(PYTEST) $(FAST)

coverage: .venv/installed  ## the same, and which lines they leave out; not counted: processes that tests start
	$(PYTEST) $(FAST) $(foreach package,sweeper models attacks analysis,--cov $(package)) --cov-report term-missing:skip-covered

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed  ## rewrite to the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/installed  ## docs/schema.md from sweeper/results/tables/
	$(BIN)/python -c "from sweeper.results.schema import markdown; print(markdown(), end='')" > docs/schema.md

docs: .venv/installed  ## build/docs: all pages, and the Python interface, with their links checked
	@rm -rf docs/api build/docs  # or unchanged pages would not be read again, nor their warnings seen
	$(BIN)/python -m sphinx --quiet --fail-on-warning --builder html docs build/docs
	@echo "build/docs/index.html"

bench: .venv/installed  ## commands, private training, mechanisms, cohorts, scheduling; QUICK=1 takes some minutes, without it hours
	$(BIN)/python benchmarks/commands.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/private_training.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/mechanisms.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/cohort.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/scheduling.py $(if $(QUICK),--quick)

chaos: .venv/installed  ## sweeps whose processes are killed at random against one undisturbed; QUICK=1 takes a few minutes
	$(BIN)/python benchmarks/chaos.py $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

chaos-network: .venv/installed  ## a sweep that loses a node's network; as root, with an SSH server installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet 'ray[default]'
	$(BIN)/python benchmarks/network_cut.py

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sweeper needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Installing into .venv: about 6 GB, some minutes."
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	-@$(BIN)/sweeper plan demo > /dev/null  # compiles our code, and caches what a first plan shows
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
