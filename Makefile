# Everything below sets up what it needs in .venv and does nothing twice.
#   make demo               train a Mult-VAE on the embedded data and show the result
#   make test               the whole test suite, on all cores; PYTEST_ARGS="-n 0 -x -k NAME"
#   make wheel CUDA=13.0    a wheel for this Python in dist/   (CUDA=cpu, 12.6; PYTHONS=3.10..3.14)
#   make demo TORCH=2.14.1  another torch        make demo PYTHON=python3.12   another Python

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -type f) setup.py tools/extension_build.py tools/strict_cuda.py pyproject.toml
CXX_FILES := $(shell find csrc tests/cuda_emu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# What the build was asked for; a change of it builds again.
BUILD_KEY := $(TORCH) cuda=$(SPARSEVAE_EXT_CUDA) archs=$(TORCH_CUDA_ARCH_LIST) flags=$(SPARSEVAE_EXT_CXXFLAGS) strict=$(SPARSEVAE_EXT_STRICT_CUDA)

.PHONY: help build demo test test-filled test-sanitized lint format bench bench-check bench-sweep bench-report cuda-check cuda-targets gpu-check wheel wheel-check clean FORCE
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make build | lint | format | bench | test-filled | test-sanitized | bench-check | bench-sweep | bench-report | cuda-check | cuda-targets | gpu-check | wheel-check | clean"

build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/sparsevae demo --out runs/demo

test: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Real sizes, and peak memory; keeps the results and writes runs/report. Wants a quiet machine, BENCH_ARGS="--passes 3" a busy one.
bench: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m benchmarks --save benchmarks/results/cpu.json $(BENCH_ARGS)

# Over densities and sizes, six minutes; sets the density from which csr_linear is dense, and draws the pictures.
bench-sweep: $(VENV)/.built
	$(BIN)/python -m benchmarks.sweep --save benchmarks/results/sweep-cpu.json $(SWEEP_ARGS)
	$(BIN)/python -m benchmarks.sweep --set-cutoff benchmarks/results/sweep-cpu.json
	$(BIN)/python -m benchmarks.sweep --write

# Puts the kept results into README.md and docs/performance.md.
bench-report: $(VENV)/.built
	$(BIN)/python -m benchmarks.report --write

# Compiles every CUDA kernel with warnings, spills and stray double arithmetic as errors, unless a strict build
# (SPARSEVAE_EXT_STRICT_CUDA=1) did so. Needs nvcc only. ARCHS=release: for what the wheel of this toolkit contains.
cuda-check: $(if $(ARCHS),$(VENV)/.base,$(VENV)/.built)
	$(BIN)/python tools/strict_compile.py $(addprefix --archs ,$(ARCHS))

# cuobjdump shows every kernel's code for every target in what was built.
cuda-targets: $(VENV)/.built $(VENV)/.cuda-check
	$(BIN)/python tools/cuda_targets.py

# The kernels' tests with every torch.empty filled with nan or the largest integer, the ops' own included.
test-filled: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest -q --fill-uninitialized -m "isa and not cuda" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q --fill-uninitialized tests/test_uninitialized.py $(PYTEST_ARGS)

# The CPU kernels' tests under ASan and UBSan, with a build of their own.
test-sanitized: $(VENV)/.built $(VENV)/.test
	$(BIN)/python tools/sanitize_cpu.py

# Every benchmark once at small sizes: what a provider computes is checked before it is timed.
bench-check: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest benchmarks -q --benchmark-enable --benchmark-only --benchmark-quiet --seconds 0.01

# For a machine with a GPU: uses the Python and torch that are there, no network. See CONTRIBUTING.md.
gpu-check:
	$(PYTHON) tools/gpu_check.py

# The toolkit is the one at CUDA_HOME; docs/releasing.md tells of the rest.
wheel: $(VENV)/.base
	$(BIN)/python tools/build_wheels.py --cuda $(or $(CUDA),cpu) --out dist \
	  --python $(or $(PYTHONS),$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'))

# The wheels that can be built here, tried in fresh environments. They get the architectures of the build that
# `make test` uses, not a release's, so that its objects serve.
wheel-check: $(VENV)/.built
	rm -rf build/wheels
	for cuda in $$($(BIN)/python tools/wheel_matrix.py --here); do \
	  TORCH_CUDA_ARCH_LIST="$(TORCH_CUDA_ARCH_LIST)" $(BIN)/python tools/build_wheels.py --cuda $$cuda \
	    --python $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
	    --out build/wheels || exit; \
	done
	$(BIN)/python tools/smoke_wheel.py build/wheels/*.whl

$(VENV)/.torch: FORCE
	@mkdir -p $(VENV)
	@echo "$(BUILD_KEY)" | cmp -s - $@ || echo "$(BUILD_KEY)" > $@

$(VENV)/constraints.txt: constraints.txt $(VENV)/.torch
	@sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "sparsevae_ext needs Python >= 3.10; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Of torch's thousands of files only those in use get compiled, when they are first imported: half a minute less.
$(VENV)/.base: $(VENV)/constraints.txt | $(VENV)/bin/python
	$(PIP) install -q --no-compile -c $(VENV)/constraints.txt torch numpy scipy tqdm matplotlib setuptools ninja pybind11
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import torch, scipy.sparse"
	@touch $@

$(VENV)/.built: $(VENV)/.base $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) install -q -c $(VENV)/constraints.txt pytest pytest-benchmark pytest-xdist hypothesis
	@touch $@

$(VENV)/.cuda-check: $(VENV)/.base pyproject.toml
	$(PIP) install -q $$($(BIN)/python tools/extras.py cuda-check)
	@touch $@

$(VENV)/.lint: $(VENV)/.base pyproject.toml
	$(PIP) install -q $$($(BIN)/python tools/extras.py lint)
	@touch $@

clean:
	rm -rf build dist *.egg-info sparsevae_ext/*.so .pytest_cache .mypy_cache .ruff_cache
