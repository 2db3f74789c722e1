# `make` alone lists the targets. Everything happens in .venv, which every target makes if it is missing or out of date.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-scale test-device test-long lint types wheel docs unit bench clean

# Test processes and their ranks share the cores: a pool of threads in each makes them fight.
test test-scale test-device test-long unit: export OMP_NUM_THREADS ?= 1
# Hundreds of processes import the frameworks: what the first has compiled must be kept, also where a container says that
# Python keeps nothing. (TensorFlow takes 8 seconds instead of 3 of every process that compiles it anew.)
unexport PYTHONDONTWRITEBYTECODE
ENV := source launch/env.sh;
PYTEST := python -m pytest
# Two processes share what needs no ranks. Ranks need the cores for themselves: they wait for each other.
WORKERS ?= 2
UNIT := $(PYTEST) -m "not multiprocess" --numprocesses $(WORKERS) --dist loadfile
SCRIPTS := .ci/run launch/*.sh tools/*.sh launch/slurm.sbatch tests/launch/*.sh

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make .venv: dependencies, Horovod (minutes, once a machine), the package
	@launch/setup.sh

demo: setup ## the first thing to look at
	@$(ENV) launch/demo.sh

# Ranks wait for each other a third of the time: what needs none runs meanwhile, at the lowest priority.
test: lint types wheel docs ## all checks and all tests but the long
	@$(ENV) mkdir -p build; echo "tests without ranks run beside the others: build/unit.log"; ranks=passed; alone=passed; \
	nice -n 19 $(UNIT) > build/unit.log 2>&1 & unit=$$!; trap 'kill $$unit; exit 130' INT TERM; \
	$(PYTEST) -m multiprocess || ranks=failed; wait $$unit || alone=failed; cat build/unit.log; \
	echo "tests with ranks: $$ranks; without: $$alone"; [ $$ranks$$alone = passedpassed ]

test-device: setup ## every compressor with gradients on a device, which Triton's interpreter makes of the CPU
	@$(ENV) $(PYTEST) --long tests/kernels tests/contract tests/multiprocess/test_torch.py -k device

test-long: setup ## the long tests: the full matrices of launchers, long fuzzing, accuracy, soak
	@$(ENV) $(PYTEST) --long

# (Those of elastic jobs, some of LGC, take minutes each.)
SCALE := many_workers or two_level or late_at_random or end_to_end or auto. or lgc_route or (mpirun-2 and (lgc or arguments_of_tapes))
test-scale: setup ## those of the long tests with 3, 4 and 6 ranks, and nodes, in every exchange, and of LGC
	@$(ENV) $(PYTEST) --long tests/multiprocess --ignore tests/multiprocess/test_elastic.py -k "$(SCALE)"

lint: setup ## formatting and lint rules, of shell scripts too
	@$(ENV) ruff format --check . && ruff check . && shellcheck --external-sources $(SCRIPTS)

types: setup ## mypy --strict on the package
	@$(ENV) mypy

wheel: setup ## build the wheel, install it where no framework is, import it
	@$(ENV) python launch/check_wheel.py

# (Not --quiet: --strict would not see what it hides.)
docs: setup ## the site of docs/, into build/site; what leads nowhere is an error
	@$(ENV) NO_MKDOCS_2_WARNING=1 mkdocs build --strict && echo "docs: build/site/index.html"

unit: setup ## the tests that run in one process
	@$(ENV) $(UNIT)

bench: setup ## what compression costs on one thread: table and picture in build/kernels
	@$(ENV) python benchmarks/kernels.py --out build/kernels

clean: ## remove .venv and everything built; the cached Horovod wheel stays
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find hvd_compress tests -name __pycache__ -prune -exec rm -rf {} +
