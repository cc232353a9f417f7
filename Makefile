# Everything a developer or CI runs. `make help` explains the verbs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What is passed on: make demo DEMO_ARGS="--prompt hello", make test TEST_ARGS="-k parser -x"
DEMO_ARGS ?=
RUN_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
LIMITS_ARGS ?=
IMAGES_ARGS ?=

# Hundreds of processes start here; without kept bytecode each compiles everything anew. `make clean` removes it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup gen demo run test lint format bench audit lock clean cluster-up cluster-down test-cluster soak images

help: ## say what the verbs do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install everything: .venv from the lock, generated code, Node and the Gemini CLI
	@$(PYTHON) tools/bootstrap.py

gen: ## generate the Python modules of proto/ (setup and test do it when needed)
	@$(PYTHON) tools/bootstrap.py --only gen

demo: setup ## a whole session end to end on embedded defaults; DEMO_ARGS="--prompt TEXT --output json"
	@$(BIN)/sandboxd demo $(DEMO_ARGS)

run: setup ## the same stack, staying up: prints addresses and a token for grpcurl and sandboxctl
	@$(BIN)/sandboxd dev $(RUN_ARGS)

test: setup ## all tests; TEST_ARGS="tests/unit -k name -x" narrows them
	@$(BIN)/pytest $(TEST_ARGS)

cluster-up: ## start a real one-node Kubernetes here, or heal it; the first time builds about 10 minutes (docs/devcluster.md)
	@$(PYTHON) -m devcluster up

cluster-down: ## end the cluster with all its pods, mounts and rules; its state and what was built stay
	@$(PYTHON) -m devcluster down

test-cluster: setup ## the tests that need a cluster, on that one or KUBECONFIG's; TEST_ARGS narrows them
	@$(PYTHON) -m devcluster need
	@CI=true $(BIN)/pytest -m "cluster and not soak" $(TEST_ARGS)

soak: setup ## the long tests, hours of them, on the same; TEST_ARGS narrows them
	@$(PYTHON) -m devcluster need
	@CI=true $(BIN)/pytest -m soak $(TEST_ARGS)

lint: setup ## ruff, mypy --strict, the direction of imports, buf lint and buf breaking
	@$(BIN)/python tools/lint.py

format: setup ## put the code into its one format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix-only --quiet .

bench: setup ## measure what the stream and the gateway add, and what bounds one process; writes docs/benchmarks.md
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)
	@$(BIN)/python -m tests.bench.limits $(LIMITS_ARGS)

audit: setup ## ask the advisory databases about the locked dependencies, where within reach
	@$(BIN)/python tools/audit.py

images: ## build and push what has changed of the images; IMAGES_ARGS="agent --registry HOST" narrows it; build/images.json
	@$(PYTHON) tools/images.py $(IMAGES_ARGS)

lock: ## resolve pyproject.toml into requirements.lock anew
	@$(PYTHON) tools/bootstrap.py --only lock

clean: ## remove what setup and the tools made in this checkout (caches in ~/.cache/sandboxd stay)
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		src/buf src/sandboxd/v1 src/sandboxd/agent/v1 src/sandboxd/internal/v1
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
