.DEFAULT_GOAL := help
.PHONY: help install browser test test-all newest fuzz demo example-languages example-hierarchy example-dispatch example-control example-transport lint types benchmarks docs clean

PYTHON ?= python3
WORKERS ?= 2
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 27

# torch is named by its exact version so that an index with a CPU build of it is not passed over for a newer one.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convexmoe needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV), once; a few minutes on a new machine."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) 'torch==2.13.0' -e '.[interop,plot,test]'
	@touch $@

install: $(INSTALLED)  ## Make .venv and install everything in it

demo: $(INSTALLED)  ## Train on real data in JAX, load it in PyTorch, draw a picture in demo-run/
	$(BIN)/convexmoe fit --out demo-run

example-languages: $(INSTALLED)  ## Compare the hierarchy with shared and flat experts on words of 25 languages
	$(BIN)/python examples/languages.py --out languages-run

example-hierarchy: $(INSTALLED)  ## Train attention experts of three levels in both frameworks, with the same steps
	$(BIN)/python examples/language_hierarchy.py

example-dispatch: $(INSTALLED)  ## Share a day's demand among five plants with learned cost curves, by a solver
	$(BIN)/python examples/dispatch_generators.py --out dispatch-run

example-control: $(INSTALLED)  ## Steer a cart three steps ahead, the rest a learned value function
	$(BIN)/python examples/predictive_control.py --out control-run

example-transport: $(INSTALLED)  ## Hulls as potentials of ott-jax, against the closed form; installs ott-jax
	@$(PIP) -e '.[peers]'
	$(BIN)/python examples/transport.py --out transport-run

# Only where CI is set, as root, and where none is found; what then has no browser fails in the test that wants one.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; done; \
	if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing a browser, which a test of pages looks with."; \
		{ apt-get update -q && apt-get install -q -y --no-install-recommends chromium; } >/dev/null || true; fi

test: lint types browser  ## Lint, types, doctests and the tests, but for those that only a release needs
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not release"

test-all: lint types browser  ## Lint, types, doctests and every test: before a release
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

newest:  ## Run the quick tests with the newest packages in .venv-newest; PYTHON=python3.13 for another Python
	@test -x .venv-newest/bin/pip || $(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/python -m pip install --disable-pip-version-check -q --upgrade --upgrade-strategy eager $(TORCH) -e '.[interop,plot,test]'
	@.venv-newest/bin/python -m pip list --disable-pip-version-check | grep -E '^(jax|flax|optax|torch|numpy|orbax-checkpoint) '
	.venv-newest/bin/pytest -n $(WORKERS) --dist worksteal -m "not slow"

fuzz: $(INSTALLED)  ## Hold 100,000 random programs a package against what certify says of them; about 20 minutes
	CONVEXMOE_PROGRAMS=5000 $(BIN)/pytest -n $(WORKERS) tests/certificates/test_fuzzer.py tests/certificates/test_torch_random.py

lint: $(INSTALLED)  ## Only ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## Only mypy
	$(BIN)/mypy

benchmarks: $(INSTALLED)  ## Print the cost tables of docs/pages/cost.md
	$(BIN)/python benchmarks/hull_cost.py
	$(BIN)/python benchmarks/dispatch.py

docs: $(INSTALLED)  ## Build the documentation into site/
	@$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict -f docs/mkdocs.yml

clean:  ## Remove .venv and everything that was built
	rm -rf $(VENV) .venv-newest build dist site demo-run languages-run dispatch-run control-run transport-run *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
