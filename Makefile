# Everything lives in .venv/ of this checkout; it is made once and reused while it is whole.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUNDLE := out/nano
PICTURE := models/nano/demo.png
NANO := .cache/nano
CORE := $(shell find cpp_ext/src cpp_ext/include -name '*.cpp' -o -name '*.hpp' -o -name '*.inc')

.PHONY: setup demo check test flaky plugin gpu-test fuzz lint format bench soak server-soak nano ray-test triton-test docs wheel \
    wheel-test arm64-test pythons-test clean

setup: $(READY)

# The CPU build of PyTorch comes first, so that nothing later asks for the CUDA one.
$(READY): pyproject.toml setup.py $(CORE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	QWENVL_STRICT_BUILD=1 $(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $(READY)

demo: $(READY)
	$(BIN)/qwenvl export models/nano $(BUNDLE) --force
	$(BIN)/python tools/demo.py $(BUNDLE) $(PICTURE) out/demo.png

.cache/qwen.tiktoken: | $(READY)
	$(BIN)/python tools/fetch_vocabulary.py $@

# Where TensorRT is installed: make plugin TENSORRT_HEADERS=<folder of NvInfer.h>
TENSORRT_HEADERS ?= .cache/tensorrt

# Without them the plugin's tests are skipped.
$(TENSORRT_HEADERS)/NvInfer.h: | $(READY)
	-$(BIN)/python tools/fetch_tensorrt_headers.py $(TENSORRT_HEADERS)

## Run tests/fast: the runtime alone, in a process without torch, exporter and compilers; under a minute.
check: $(READY) .cache/qwen.tiktoken
	$(BIN)/python -m pytest tests/fast

## Run all tests, those of `check` first.
test: check $(TENSORRT_HEADERS)/NvInfer.h
	$(BIN)/python -m pytest --ignore tests/fast

FLAKY_RUNS ?= 10

## Run all tests FLAKY_RUNS (10) times, alone and beside other work; out/flaky.txt names what failed in any run.
flaky: $(READY) .cache/qwen.tiktoken $(TENSORRT_HEADERS)/NvInfer.h
	$(BIN)/python tools/flaky.py --runs $(FLAKY_RUNS)

# The TensorRT plugin for every architecture that nvcc knows: minutes.
plugin: $(TENSORRT_HEADERS)/NvInfer.h
	cmake -S cpp_ext/tensorrt_plugin -B build/plugin -DTENSORRT_INCLUDE_DIR=$(abspath $(TENSORRT_HEADERS))
	cmake --build build/plugin --parallel 2

# What only a GPU can show; without one every test is skipped and says why.
gpu-test: $(READY) $(TENSORRT_HEADERS)/NvInfer.h
	$(BIN)/python -m pytest tests/hardware/gpu -rs

FUZZ_SECONDS ?= 20

# FUZZ_SECONDS a target; without clang it says so and does nothing.
fuzz:
	cpp_ext/fuzz/run.sh $(FUZZ_SECONDS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	$(BIN)/python benchmarks/latency.py $(BUNDLE) --checkpoint models/nano
	$(BIN)/python benchmarks/accuracy.py fp32=$(BUNDLE)
	$(BIN)/python benchmarks/server.py $(BUNDLE)
	$(BIN)/python benchmarks/tokenizer.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/image.py
	$(BIN)/python benchmarks/install_size.py

# Ten minutes of random conversations and batches, each compared with an engine that reuses nothing or answers alone;
# then an hour of sixteen threads asking one engine, every answer checked.
PROPERTIES := $(addprefix tests/e2e/test_,reuse_random.py batches.py batching.py)
soak: $(READY)
	$(BIN)/python -m pytest $(PROPERTIES) --hypothesis-profile soak
	$(BIN)/python -m pytest tests/e2e/test_threads.py --soak-minutes 60 --soak-json benchmarks/results/soak.json

# Sixteen clients ask a server 10,000 questions, every answer checked.
server-soak: $(READY)
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	$(BIN)/python benchmarks/server.py $(BUNDLE) --repeats 0 --json benchmarks/results/server-soak.json

# The Ray Serve application with two replicas, one of them killed: a minute, and 250 MB of packages.
ray-test: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	$(BIN)/python -m pytest tests/fleet tests/fast/test_import.py -rs

# The model repository in the Triton Inference Server that nvidia-pytriton brings. It needs NumPy 1: a place of its own.
triton-test: $(READY)
	test -x .cache/triton/bin/python || $(PYTHON) -m venv .cache/triton
	.cache/triton/bin/python -m pip install --quiet 'nvidia-pytriton>=0.7' 'onnxruntime>=1.23' pillow llguidance
	$(BIN)/python -m pytest tests/fleet/test_triton.py -rs

# Trains models/nano from nothing: hours on two cores. Interrupted, it goes on where it was.
nano: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[nano]'
	$(BIN)/python -m tools.nano.make $(NANO) models/nano

# The pages of docs/ as out/docs/index.html; a warning is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# dist/: source package, wheel for this machine, bill of materials.
wheel: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[package]'
	PYTHON=$(BIN)/python release/wheel.sh

# The wheel in an empty environment, asked about a picture.
wheel-test: wheel
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	release/wheel_test.sh $(BUNDLE) $(PICTURE)

RECORDS := benchmarks/results

# Builds, installs and asks the source package in an emulated arm64 Debian: root, debootstrap, half an hour.
arm64-test: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[package]'
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	PYTHON=$(BIN)/python release/arm64_test.sh $(BUNDLE) $(PICTURE) $(RECORDS)/arm64.json

PYTHONS ?= python3.10 python3.11 python3.12 python3.13

# The same with every Python of PYTHONS, on this machine.
pythons-test: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[package]'
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	PYTHON=$(BIN)/python release/pythons_test.sh $(BUNDLE) $(PICTURE) $(RECORDS)/pythons.json $(PYTHONS)

clean:
	rm -rf build out $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
