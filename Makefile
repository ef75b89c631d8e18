# Two commands do all the set-up: `make quickstart` and `make test`. Both use one virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest/bin
GPU := $(VENV)-gpu
TINY := --tiny --patience 5 --seconds 1200
PYTEST := -m pytest -n auto --dist worksteal -m "not slow and not gpu"

.DEFAULT_GOAL := help
.PHONY: help quickstart test browser test-lowest test-gpu-script test-slow check format clean

help:
	@echo "make quickstart   attack a CLIP, make it robust with FARE, swap it into a LLaVA, measure (3 to 5 minutes on 2 cores)"
	@echo "make test         the tests (8 minutes on 2 cores)"
	@echo "make browser      install Chromium with apt-get, for the tests of the page; without one they are skipped"
	@echo "make test-lowest  what depends on other libraries, with the lowest versions that pyproject.toml accepts"
	@echo "make test-gpu-script  the benchmarks for a GPU in their smallest form, prepared and run as on another machine"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make check        lint, format and types"

# The pinned torch is installed first: where the index offers a CPU build of that version, nothing larger is fetched.
$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fare_hf needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

quickstart: $(BIN)/.installed
	$(BIN)/fare-hf quickstart --output_dir outputs/quickstart

test: $(BIN)/.installed
	$(BIN)/python $(PYTEST)

browser:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# Attacks, the lab and the page are tested with the pinned versions alone: they use torch, or what the other tests use.
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	@touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/python $(PYTEST) --ignore tests/app --ignore tests/attacks --ignore tests/lab \
		--ignore tests/project/test_benchmarks.py --ignore tests/project/test_examples.py

# Stands for a machine with a GPU: torch, a transformers that is too old, and none of the others. What it lacks is fetched
# beside an index, and unpacked and run without one; then everything with the lowest versions.
test-gpu-script: $(LOWEST)/.installed
	$(PYTHON) -m venv --clear $(GPU)
	$(GPU)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt) transformers==5.17.0
	$(GPU)/bin/python -m pip freeze > $(GPU)/freeze.txt
	PYTHON=$(GPU)/bin/python examples/benchmarks/gpu.sh prepare $(GPU)/wheels --have $(GPU)/freeze.txt \
		--python $$($(GPU)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') --platform $$(uname -m)
	PYTHON=$(GPU)/bin/python examples/benchmarks/gpu.sh run --wheels $(GPU)/wheels $(TINY) --output outputs/gpu-prepared
	PYTHON=$(LOWEST)/python examples/benchmarks/gpu.sh run $(TINY) --output outputs/gpu-lowest

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fare_hf examples tools

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest $(GPU) outputs .pytest_cache .mypy_cache .ruff_cache *.egg-info
