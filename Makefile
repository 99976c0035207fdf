# make setup | lint | test | reproduce-table2 | reproduce-figures     variables: DATA= CHECKPOINTS= DEVICES= SEEDS= EPOCHS= STEPS= SOLVER= WORKERS=
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
FLAGS = $(if $(DATA),--data $(DATA)) $(if $(CHECKPOINTS),--checkpoints $(CHECKPOINTS)) $(if $(DEVICES),--devices $(DEVICES)) \
        $(if $(SEEDS),--seeds $(SEEDS)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(STEPS),--steps $(STEPS)) \
        $(if $(SOLVER),--solver $(SOLVER)) $(if $(WORKERS),--workers $(WORKERS))

.PHONY: setup lint format test reproduce-table2 reproduce-figures benchmark
.DEFAULT_GOAL := setup

setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock
	@command -v $(UV) >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/pip install --quiet uv; }
	$(UV) sync --frozen --quiet
	@touch $@

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# one thread for each of two processes: tiny models gain nothing from more
test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

reproduce-table2: setup
	$(PYTHON) -m experiments run table2 $(FLAGS)

reproduce-figures: setup
	$(PYTHON) -m experiments run figure1 figure2 figure3 $(FLAGS)

benchmark: setup
	$(PYTHON) -m benchmarks.statistics
