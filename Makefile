# make demo   sets everything up and runs the main job on the bundled model
# make test   sets everything up and passes the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WORKERS ?= 2
DATA ?= data/fashion-mnist
PYTHON311 ?= python3.11
DEEPSPARSE := build/deepsparse

.PHONY: help demo test check format bench bench-quick bench-arm bench-deepsparse bench-wasm bench-size conformance coverage accuracy clean
help:
	@echo "make demo         prune, sparsify, compile, run and measure the bundled model"
	@echo "make test         run the tests"
	@echo "make check        formatter, linter, types"
	@echo "make bench        seven networks, dense and sparse, beside ONNX Runtime and OpenVINO; writes docs/performance.md"
	@echo "                  (long; MODELS=ResNet-18,BERT-base SPARSITY=0,90,90-4x1 SECONDS=3: less;"
	@echo "                  AGAIN=0.15: once more what varied by more)"
	@echo "make bench-quick  MobileNetV1 and ResNet-18, dense and 90 % sparse, one thread (a minute)"
	@echo "make bench-deepsparse  the same networks beside DeepSparse, in a virtual environment of its own (Python 3.11;"
	@echo "                  PYTHON311=…); adds its section to docs/performance.md"
	@echo "make bench-wasm   WebAssembly in Node and Chromium beside ONNX Runtime Web and TensorFlow.js; its section"
	@echo "                  of docs/web.md (Node 20, npm; MODELS=MobileNetV1 VARIANTS=0,half,90 SECONDS=6: less)"
	@echo "make bench-arm    ARM without a board: inner loops by llvm-mca, networks under qemu-user; writes"
	@echo "                  docs/arm-performance.md (Debian: apt-get install llvm-19 qemu-user; MODELS=…: less;"
	@echo "                  ACCURACY=1000: what half precision costs a trained network alone)"
	@echo "make bench-size   grouping and pruning of 10,000 layers and of 8 billion parameters"
	@echo "make conformance  the ONNX node tests: round trip and native backend; the largest networks (long)"
	@echo "make coverage     groups, prunable share and certificate of the zoo's architectures, then the whole test"
	@echo "                  on every model of torchvision beside Torch-Pruning (long; MODELS=resnet18,swin_t: a few)"
	@echo "make accuracy     accuracy of four networks after pruning, every criterion, beside Torch-Pruning (hours);"
	@echo "                  DATA=DIR of Fashion-MNIST's idx files, OTHER=DIR of MNIST's"
	@echo "make clean        remove the virtual environment and what the demo made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "the venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of requirements, made anew when they change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[test,dev]"
	@touch $@ $(VENV)/.installed

# Without dependencies: torchvision would replace torch, and its models work without its compiled part.
$(VENV)/.installed-coverage: $(VENV)/.installed-test
	$(PIP) install --no-deps -c constraints.txt torchvision torch-pruning pillow
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/secateur demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without dependencies: OpenVINO runs without its telemetry, and needs numpy alone.
$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(PIP) install --no-deps -c constraints.txt openvino
	@touch $@

bench: $(VENV)/.installed-bench
	$(BIN)/python -W ignore -m tests.benchmarks.bench --models "$(MODELS)" --sparsity "$(SPARSITY)" \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(AGAIN),--again $(AGAIN))
	$(BIN)/python -m tests.benchmarks.bench_road

# DeepSparse reads no newer Python, numpy or onnx than these. Its licence allows evaluation.
$(DEEPSPARSE)/.installed:
	$(PYTHON311) -m venv $(DEEPSPARSE)
	$(DEEPSPARSE)/bin/python -m pip --disable-pip-version-check --quiet install \
		deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1
	@touch $@

bench-deepsparse: $(VENV)/.installed-test $(DEEPSPARSE)/.installed
	$(BIN)/python -W ignore -m tests.benchmarks.bench --deepsparse --models "$(MODELS)" --sparsity "$(SPARSITY)" \
		$(if $(SECONDS),--seconds $(SECONDS))

build/bench-web/.installed: tests/benchmarks/web/package.json
	mkdir -p build/bench-web
	cp tests/benchmarks/web/package.json build/bench-web/
	npm install --prefix build/bench-web --no-audit --no-fund --ignore-scripts
	@touch $@

bench-wasm: $(VENV)/.installed-test build/bench-web/.installed
	$(BIN)/python -W ignore -m tests.benchmarks.bench_web --models "$(MODELS)" --variants "$(VARIANTS)" --write \
		$(if $(SECONDS),--seconds $(SECONDS))

bench-quick: $(VENV)/.installed-bench
	$(BIN)/python -W ignore -m tests.benchmarks.bench --quick

bench-arm: $(VENV)/.installed-test
	$(BIN)/python -W ignore -m tests.benchmarks.bench_arm --models "$(MODELS)" $(if $(ACCURACY),--accuracy $(ACCURACY))

bench-size: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks.bench_size

conformance: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) tests/conformance

coverage: $(VENV)/.installed-coverage
	$(if $(MODELS),,$(BIN)/python -m tests.zoo.coverage)
	$(BIN)/python -m tests.torchvision.coverage "$(MODELS)"

accuracy: $(VENV)/.installed-coverage
	$(BIN)/python -m tests.accuracy.study --data "$(DATA)" $(if $(OTHER),--other "$(OTHER)")

clean:
	rm -rf $(VENV) secateur-demo *.egg-info
