# make demo      train the quickstart and print text that the trained model wrote
# make test      the whole test suite
# make test-all  the same, and the full products of the variation tables
# make lint      formatting, lint and the layer contract
# make format    rewrite the files so that `make lint` accepts them
# make clean     remove the environments and caches (runs/ stays)
#
# Each creates the environment that it needs: .venv for what runs, .venv-test for tests and checks.
# PYTHON=python3.12 chooses the interpreter; the environment of both is then .venv-3.12.

ifdef PYTHON
  INTERPRETER := $(shell .ci/find_python $(PYTHON))
  $(if $(INTERPRETER),,$(error PYTHON=$(PYTHON) does not run))
  VENV ?= .venv-$(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
VENV ?= .venv
# Tests need much that a user does not, such as the compiler for TPUs.
TEST_VENV ?= $(if $(filter .venv,$(VENV)),.venv-test,$(VENV))
BIN := $(VENV)/bin
TEST_BIN := $(TEST_VENV)/bin
MAIN := $(BIN)/python -m gpt_jax.main
# Extra arguments for pytest: make test TESTS='tests/optim -k adamw'
TESTS ?=

.PHONY: demo test test-all lint format clean

demo: $(VENV)/.runtime
	@printf '\n%s\n\n' 'Training a small GPT on the Python standard library (some minutes on a laptop)'
	@$(MAIN) --config configs/quickstart.py
	@printf '\n%s\n\n' 'What it writes after "class " with another seed'
	@$(MAIN) --config configs/quickstart.py --mode generate --prompt 'class ' --seed 7
	@printf '%s\n' '' \
	  'Next, after `. $(VENV)/bin/activate`:' '' \
	  '  python -m gpt_jax.main --workdir runs/quickstart --mode generate \' \
	  '      --prompt "import "' \
	  '  python -m gpt_jax.main --workdir runs/quickstart --mode inspect \' \
	  '      --prompt "for name in names: print(name)"' \
	  '  python -m gpt_jax.main --workdir runs/quickstart --mode evaluate' \
	  '  python -m gpt_jax.main --config configs/quickstart.py --workdir runs/own \' \
	  '      --config.data.corpus=text --config.data.source=YOUR_TEXT.txt \' \
	  '      --config.data.split=tail:0.1'

test: $(TEST_VENV)/.development
	$(TEST_BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

test-all: $(TEST_VENV)/.development
	$(TEST_BIN)/python -m pytest -n 2 --dist worksteal --exhaustive $(TESTS)

lint: $(TEST_VENV)/.development
	$(TEST_BIN)/ruff check .
	$(TEST_BIN)/ruff format --check .
	$(TEST_BIN)/lint-imports

format: $(TEST_VENV)/.development
	$(TEST_BIN)/ruff check --fix .
	$(TEST_BIN)/ruff format .

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Kept, although other stamps need them.
.SECONDARY:
# The stamps are newer than the requirements that they installed, so a second call is quick.
%/.runtime: requirements.txt
	@test -x $*/bin/python || { echo 'Creating the environment $*'; \
	  python=$$(.ci/find_python $(PYTHON)) && "$$python" -m venv $*; }
	@echo 'Installing JAX and the rest of $< into $* (once)'
	@$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

%/.development: requirements-dev.txt %/.runtime
	@echo 'Installing $< into $* (once)'
	@$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r $<
	@touch $@
