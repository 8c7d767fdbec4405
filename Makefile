# make demo      train the quickstart and print text that the trained model wrote
# make test      the whole test suite
# make test-all  the same, and the full products of the variation tables
# make lint      formatting, lint and the layer contract
# make format    rewrite the files so that `make lint` accepts them
# make clean     remove the environments and caches (runs/ stays)
#
# Each creates the environment that it needs. PYTHON=python3.12 chooses the interpreter; its
# environment is then .venv-3.12, otherwise .venv.

ifdef PYTHON
  INTERPRETER := $(shell .ci/find_python $(PYTHON))
  $(if $(INTERPRETER),,$(error PYTHON=$(PYTHON) does not run))
  VENV ?= .venv-$(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
VENV ?= .venv
BIN := $(VENV)/bin
# Extra arguments for pytest: make test TESTS='tests/optim -k adamw'
TESTS ?=

.PHONY: demo test test-all lint format clean

demo: $(VENV)/.runtime
	$(BIN)/python -m gpt_jax.main --config configs/quickstart.py
	$(BIN)/python -m gpt_jax.main --config configs/quickstart.py --mode generate

test: $(VENV)/.development
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

test-all: $(VENV)/.development
	$(BIN)/python -m pytest -n 2 --dist worksteal --exhaustive $(TESTS)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than the requirements that they installed, so a second call is quick.
$(VENV)/.runtime: requirements.txt
	test -x $(BIN)/python || { python=$$(.ci/find_python $(PYTHON)) && "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.development: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@
