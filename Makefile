# make demo       the whole life of a small model, on this machine; again: goes on where it was, or does nothing
# make test       style, types and every test
# make test-fast  every test that takes no more than a few seconds
# make lint       style and types
# make tree       write the tree of the source into ARCHITECTURE.md
# make oracles    llama.cpp, against which GGUF files are proved: compiled for minutes; without it those tests skip
#
# The first call makes .venv. PYTHON=... chooses another interpreter, VENV=... another folder for it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
WORKERS ?= 2
# Tests run in several processes: with a thread each they do not wait for one another's threads.
ONE_THREAD := OMP_NUM_THREADS=1

ORACLE_SECONDS ?= 600
LIMIT := $(shell command -v timeout >/dev/null 2>&1 && echo timeout $(ORACLE_SECONDS))

.PHONY: demo test test-fast lint tree oracles
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-serve
	$(BIN)/leveret run recipes/demo.yaml

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

test-fast: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tree: $(VENV)/.installed-dev
	cd tests && $(abspath $(BIN))/python -m architecture.tree

# Compiled for any machine, not for this one: its AMX code, compiled by GCC 12, dies of an illegal instruction. Never an
# error: where there is no compiler, no index or no time, the tests that need it say that they skip.
oracles: $(VENV)/.installed-dev
	@if $(BIN)/python -c "import llama_cpp" 2>/dev/null; then echo "llama.cpp is installed"; \
	elif CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(LIMIT) $(BIN)/python -m pip install --quiet "llama-cpp-python>=0.3.36" \
		&& $(BIN)/python -c "import llama_cpp; llama_cpp.llama_backend_init()"; then echo "llama.cpp was installed"; \
	else $(BIN)/python -m pip uninstall --quiet --yes llama-cpp-python; \
		echo "llama.cpp could not be installed in $(ORACLE_SECONDS) seconds; the tests against it will skip"; fi

# An extra is installed again when pyproject.toml or a kernel changes.
KERNELS := setup.py $(wildcard src/leveret/kernels/native/*.cpp src/leveret/kernels/native/*.h)
$(VENV)/.installed-%: pyproject.toml $(KERNELS) | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

# torch comes first and by its exact version: it is the largest part, and what the tests ran on.
$(VENV)/.torch: | $(VENV)/.made
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install torch==$(TORCH)
	touch $@

$(VENV)/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Leveret needs Python 3.11 or newer; found: $(PYTHON). Install it, or say: make PYTHON=/path/to/python3.11"; \
		exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: its venv and ensurepip are missing."; \
		echo "On Debian or Ubuntu: sudo apt install python3.11-venv. Or say: make PYTHON=/path/to/another/python3.11"; \
		exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	touch $@
