# Every target does its own set-up in .venv. PYTHON names the interpreter it is made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEED   ?= 0

.PHONY: help setup quickstart test test-fast test-losses-oldest lint types format bench-setup bench-cpu \
	bench-gpu bench-gpu-short clean

help:
	@echo "make quickstart   synthesize a small set, train both stages, score, print the table"
	@echo "make test         every test (test-fast: without the slow ones)"
	@echo "make test-losses-oldest  the losses with the oldest jax, in a venv of their own"
	@echo "make lint types   ruff, mypy"
	@echo "make bench-cpu    throughput of this machine against PyTorch, side by side"
	@echo "make bench-gpu-short  the figures of a GPU that matter most, in 6 minutes"
	@echo "make bench-gpu    every figure that needs an accelerator, as json in experiments/results"

# The stamp is newer than the files that say what to install, or everything is installed again.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "asdproto needs Python 3.11 or newer, found " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	@echo "Setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,test]'
	@touch $@

setup: $(VENV)/.installed

quickstart: setup
	@$(BIN)/python -m experiments.quickstart --workdir runs/quickstart --seed $(SEED)

# Files are dealt out to so many processes, which take up to 4 GB each.
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

# The base install beside a pinned old jax, which must bring nothing else; then what it must do.
OLDEST := .venv-oldest
test-losses-oldest:
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check . 'jax==0.4.38'
	@$(OLDEST)/bin/python -P -c 'import asdproto.losses; print(asdproto.losses.__file__)'
	$(OLDEST)/bin/python -m tests.losses.oldest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An image with its own jax and torch is used as it is: make bench-gpu BENCH_PYTHON=python3
BENCH_PYTHON ?= $(BIN)/python
BENCH_EXTRAS ?= bench
BENCH        := -m experiments.benchmarks.train
BENCH_SETUP  := $(if $(filter $(BIN)/python,$(BENCH_PYTHON)),bench-setup)

# For a GPU: make bench-setup BENCH_EXTRAS=bench,cuda12
bench-setup: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,$(BENCH_EXTRAS)]'

bench-cpu: $(BENCH_SETUP)
	$(BENCH_PYTHON) $(BENCH) --preset small --expect cpu --widths 16 32 64 --out experiments/results/train_cpu.json

# Everything first, then the losses, then the steps alone under other compiler flags, which a process
# has once. Flags that an XLA does not know end that line, not the rest.
BENCH_GPU := --preset paper --dtype bfloat16 --expect gpu --out experiments/results/
bench-gpu: $(BENCH_SETUP)
	$(BENCH_PYTHON) $(BENCH) $(BENCH_GPU) --full --widths 64 16 32
	-$(BENCH_PYTHON) -m experiments.benchmarks.losses --out experiments/results/losses_speed_gpu.json
	-$(BENCH_PYTHON) $(BENCH) $(BENCH_GPU) --parts steps loops --tag no_graphs --xla-flags="--xla_gpu_enable_command_buffer="
	-$(BENCH_PYTHON) $(BENCH) $(BENCH_GPU) --parts steps loops --tag small_graphs --xla-flags="--xla_gpu_graph_min_graph_size=1"
	-$(BENCH_PYTHON) $(BENCH) $(BENCH_GPU) --parts steps loops --tag loop_graphs --xla-flags="--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_graph_min_graph_size=1"

bench-gpu-short: $(BENCH_SETUP)
	$(BENCH_PYTHON) -m experiments.benchmarks.short --expect gpu --out experiments/results/

clean:
	rm -rf $(VENV) $(OLDEST) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
