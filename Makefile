# Every target sets up what it needs first; the second time that takes no time.
PYTHON ?= python3

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

# Demo and tests start hundreds of Python processes, which would compile all modules anew each time.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The CUDA bindings are of use only where there is a driver.
comma := ,
EXTRAS := dev$(if $(wildcard /dev/nvidiactl),$(comma)cuda)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## two workers, real reads, verified, in a minute
	@$(BIN)/kvferry demo

# What only computes runs beside the tests of real processes, which wait a lot, and takes what they leave.
COMPUTING := tests/simulation tests/unit/planning tests/unit/reference_engine
# Runs a command; shows all that it says if it fails, otherwise its last line.
quietly = log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	$(1) >"$$log" 2>&1 || { cat "$$log"; exit 1; }; $(2) tail -n 1 "$$log"

.PHONY: test
test: $(READY) ## run the tests, in 14 to 17 minutes on two cores
	@$(MAKE) --jobs=2 test-units test-others

.PHONY: test-computing
test-computing: $(READY) ## of them the planner's, the model's and the simulation's
	@$(call quietly,nice -n 10 $(BIN)/pytest --timeout 600 $(COMPUTING),grep "^simulation: " "$$log";)

.PHONY: test-units
test-units: test-computing ## of them these, and then the other unit tests
	@$(call quietly,$(BIN)/pytest $(addprefix --ignore ,$(COMPUTING)) tests/unit)

.PHONY: test-others
test-others: $(READY) ## of them those of processes and of contracts; tests/style is what `make check` runs
	@$(BIN)/pytest --ignore tests/unit --ignore tests/simulation --ignore tests/style

.PHONY: test-long
test-long: $(READY) ## run the tests that take longer: variants of processes, and the planner's on many more layouts
	@$(BIN)/pytest -m long tests/contract tests/process
	@$(BIN)/pytest --hypothesis-profile long --timeout 7200 tests/unit/planning

SEEDS ?= 300
SEED ?= random
seed := $(if $(filter-out random,$(SEED)),--seed $(SEED))

.PHONY: simulate
simulate: $(READY) ## run a cluster in virtual time under faults: SEEDS=1000 runs so many, SEED=7 shows one with its trace
	@$(BIN)/python -m tests.simulation $(or $(seed),--seeds $(SEEDS))

.PHONY: test-asan
test-asan: $(READY) ## run the native core's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@dataplane/native/sanitized/test.sh $(BIN)/python

.PHONY: test-tsan
test-tsan: ## stress the native core under ThreadSanitizer
	@dataplane/native/sanitized/race.sh

.PHONY: test-gpu
test-gpu: $(READY) ## run the tests that need an NVIDIA GPU
	@$(BIN)/pytest tests/gpu

chaos_json = $(if $(JSON),--json $(JSON))

.PHONY: chaos
chaos: $(READY) ## break real processes and networks under load for ten minutes (SEED=n repeats a run; JSON=file)
	@$(BIN)/python -m tests.chaos $(seed) $(chaos_json)

.PHONY: chaos-short
chaos-short: $(READY) ## two minutes of that, as in the tests
	@$(BIN)/python -m tests.chaos --short $(seed) $(chaos_json)

MINUTES ?= 30

.PHONY: soak
soak: $(READY) ## load without faults for MINUTES: what grows, and whether it stays as quick (JSON=file)
	@$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(chaos_json)

.PHONY: bench
bench: $(READY) ## measure planning, whole pulls against raw NIXL, warm pulls against unary calls, and many at once
	@$(BIN)/kvferry bench plan
	@$(BIN)/kvferry bench transfer
	@$(BIN)/kvferry bench latency
	@$(BIN)/kvferry bench control

.PHONY: check
check: check-lint check-types check-protos check-imports check-style ## all static checks (make -k check: do not stop at the first)

.PHONY: check-lint
check-lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: check-types
check-types: $(READY)
	@$(BIN)/mypy

.PHONY: check-protos
check-protos: $(READY)
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/baseline.binpb
	@$(BIN)/python protos/generate.py --check

.PHONY: check-imports
check-imports: $(READY)
	@$(BIN)/lint-imports --no-logo

.PHONY: check-style
check-style: $(READY)
	@$(BIN)/pytest -q tests/style

.PHONY: format
format: $(READY) ## sort imports, fix what can be fixed, format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: protos
protos: $(READY) ## generate the Python side of the wire contract
	@$(BIN)/python protos/generate.py

.PHONY: protos-baseline
protos-baseline: $(READY) ## accept the present contract as what later changes must stay compatible with
	@$(BIN)/buf build protos --as-file-descriptor-set --exclude-source-info -o protos/baseline.binpb

.PHONY: setup
setup: $(READY) ## create .venv and install into it

.PHONY: clean
clean: ## remove .venv, caches and build output
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf kvferry/device/*.so dataplane/kvferry_dataplane/transports/*.so
	@find dataplane/native/inplace -mindepth 1 ! -name CMakeLists.txt -delete
	@find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

NATIVE := $(wildcard $(foreach suffix,cpp hpp inc,$(foreach folder,. libfabric ucx,dataplane/native/$(folder)/*.$(suffix))) \
	dataplane/native/CMakeLists.txt dataplane/native/inplace/CMakeLists.txt)

$(READY): pyproject.toml constraints.txt .ci/system-packages $(NATIVE)
	@.ci/system-packages "$(PYTHON)"
	@echo "kvferry: installing into $(VENV)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
