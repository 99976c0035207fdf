# make setup | lint | test | test-slow | test-gpu | docs | dist | audit | mutants | browser | reproduce-table1 ... reproduce-table4 | reproduce-figures | reproduce-all | ablate-z | benchmark
# variables: DATA= CHECKPOINTS= DEVICES= SEEDS= EPOCHS= STEPS= SOLVER= OPTIMIZER= LR= GLOBAL_BATCH= WORKERS= LOADER_WORKERS= RESULTS=
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
FLAGS = $(if $(DATA),--data $(DATA)) $(if $(CHECKPOINTS),--checkpoints $(CHECKPOINTS)) $(if $(DEVICES),--devices $(DEVICES)) \
        $(if $(SEEDS),--seeds $(SEEDS)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(STEPS),--steps $(STEPS)) \
        $(if $(SOLVER),--solver $(SOLVER)) $(if $(OPTIMIZER),--optimizer $(OPTIMIZER)) $(if $(LR),--lr $(LR)) \
        $(if $(GLOBAL_BATCH),--global-batch $(GLOBAL_BATCH)) $(if $(WORKERS),--workers $(WORKERS)) \
        $(if $(LOADER_WORKERS),--loader-workers $(LOADER_WORKERS)) $(if $(RESULTS),--results $(RESULTS))

.PHONY: setup lint format test test-slow test-gpu docs dist audit mutants browser reproduce-all reproduce-figures ablate-z benchmark
.DEFAULT_GOAL := setup

# bytecode is left behind even where PYTHONDONTWRITEBYTECODE is set, or each start compiles again; what is fresh stays
setup: .venv/.ready
	@$(PYTHON) -m compileall -q lowrank_vit experiments benchmarks tests

.venv/.ready: pyproject.toml uv.lock Makefile
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/pip install --quiet uv; }
	$(UV) sync --frozen --all-extras --compile-bytecode --quiet
	@touch $@

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/deptry lowrank_vit experiments

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# one thread for each of two processes: tiny models gain nothing from more
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow"

# processes, browsers, trainings, exports, whole commands, and all cases of what `make test` tries on a few; CI runs both
test-slow: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.slow

# what a CUDA device does, on a machine that has one; the other tests compute on the CPU
test-gpu: setup
	$(PYTHON) -m pytest -m gpu

# the pages, in site; strict (mkdocs counts no warning with --quiet), and without a network. SERVE=1 shows them while they are written
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs $(if $(SERVE),serve,build) --strict

# a wheel and a source distribution, in dist
dist: setup
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m twine check --strict dist/*

# known vulnerabilities of all locked versions, extras and tools of development included; it asks a public service
audit: setup
	@list=$$(mktemp) && trap 'rm -f "$$list"' EXIT && \
	  $(UV) export --frozen --quiet --all-extras --all-groups --no-emit-project --output-file "$$list" && \
	  $(UV) tool run pip-audit --strict --require-hashes --disable-pip --requirement "$$list"

# some 40 planted mistakes of mathematics, then changed operators and numbers in the folders that pyproject.toml names; hours,
# and not in continuous integration
mutants: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.faults
	OMP_NUM_THREADS=1 $(UV) run --frozen --with 'mutmut>=3.3,<4' mutmut run

# Chromium for the tests of pages, which are skipped, with the reason, where it is missing
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium, and it cannot be installed (that takes root, apt-get and a network): pages are tested without one"

# reproduce-table1 ... reproduce-table4, reproduce-table_best
reproduce-table%: setup
	$(PYTHON) -m experiments run table$* $(FLAGS)

ablate-z: reproduce-table1

reproduce-figures: setup
	$(PYTHON) -m experiments run figure1 figure2 figure3 figure_loss $(FLAGS)

# all tables and figures, side by side, with one progress display
reproduce-all: setup
	$(PYTHON) -m experiments run all $(FLAGS)

# tables in the terminal, JSON in results/benchmarks; DeiT-B at batch 64 takes long on a CPU
benchmark: setup
	$(PYTHON) -m benchmarks.startup --json $(or $(RESULTS),results)/benchmarks/startup.json
	$(PYTHON) -m benchmarks.memory --json $(or $(RESULTS),results)/benchmarks/memory.json
	$(PYTHON) -m benchmarks.speed --json $(or $(RESULTS),results)/benchmarks/speed.json
