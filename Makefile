# make demo: train a small DiT on real digits and draw some.   make test: everything CI runs.
# make gpu: on a machine with a GPU and its own torch, what only a GPU can tell (benchmarks/gpu.py),
# then whole models on it (benchmarks/end_to_end.py).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

demo: $(VENV)/ready
	dit-fast demo --out runs/demo

test: $(VENV)/ready host_exec
	ruff check .
	mypy
	OMP_NUM_THREADS=1 pytest -n 2

# One environment for both: torch first, whose headers the native library is built against.
$(VENV)/ready: pyproject.toml constraints.txt setup.py CMakeLists.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	pip install -q -c constraints.txt torch "setuptools>=77" "cmake>=3.18" ninja
	pip install -q -c constraints.txt --no-build-isolation -e ".[demo,dev]"
	pip install -q -c constraints.txt --no-deps torch-fidelity  # its torchvision is built for CUDA's torch; tests stand in
	dit-fast info
	touch $@

gpu:
	$(PYTHON) -m benchmarks.gpu
	$(PYTHON) -m benchmarks.end_to_end

# The CUDA kernels on the CPU, plain and under two sanitizers; tests/host_exec/build.py says who loads which. Needs the
# headers of the CUDA toolkit, no GPU.
HOST_EXEC = cmake -S . -G Ninja -DDIT_HOST_EXEC=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
host_exec: $(VENV)/ready
ifeq ($(shell command -v nvcc),)
	@echo "no CUDA toolkit here: the CUDA kernels are neither compiled nor run, and their tests say so as they skip"
else
	$(HOST_EXEC) -B build/host_exec
	$(HOST_EXEC) -B build/host_exec-address -DDIT_SANITIZE=address
	$(HOST_EXEC) -B build/host_exec-thread -DDIT_SANITIZE=thread
	set -e; for b in host_exec host_exec-address host_exec-thread; do cmake --build build/$$b --target host_exec; done
endif

clean:
	rm -rf $(VENV) build runs dit_fast/_native.so

.PHONY: demo test host_exec gpu clean
