# `make help` explains every line. Each command first makes .venv hold what it needs (requirements/install.py).
# Where one fails, make says "Error N" (what N means: .venv/bin/python -m reproduce --help) and itself exits with 2.

SCALE ?= smoke#      smoke (generated pictures, minutes), lite (CIFAR-10) or paper (the recipe to the letter)
SEEDS ?=#            number of seeds of each run (default 1; record: 8)
DATA ?=#             folder with your pictures; scale smoke makes its own
DATA_CONFIG ?=#      how DATA is laid out: a name in reproduce/conf/data, or a YAML file
SKIP_BAD_IMAGES ?=#  1: count pictures that can't be read and go on, instead of stopping
SKIP_MISSING_DATA ?=# 1: reproduce-* makes the cells whose data is there, instead of refusing
CLUSTER ?=#          where runs go: local (default), slurm or kubernetes (docs/clusters.md)
CLUSTER_OPTIONS ?=#  what is your site's own, as "slurm.partition=gpu num_processes=64"
ARCHIVES ?=#         folder of the official archives, for data-prepare
SHARDS ?=#           folder that data-shard writes to
SETS ?=#             data sets that data-* take, as "imagenet voc07" (default all)
DECODE ?=#           pictures that data-verify decodes: sample (default) or all
FROM ?=#             scratch: train (default); released: take public weights
CORES ?=#            number of cores to use (default all)
TABLES ?=#           tables that record takes, as "table3 table7" (default all)
STRICT ?=#           1: reproduce-* and check-* fail where any doubt is left, for CI
CHECKPOINT ?=#       what evaluate-* judges: the run_id of a pretraining, a file, or released:NAME (fetch lists them)
OVERRIDES ?=#        changes to the config of pretrain-* or evaluate-*, as "batch_size=128 seed=3"
FLAVOUR ?=#          image of docker-build: cpu (default) or cuda
BASE ?=#             base of the images, with Python 3.11 (default: docker/versions.env)
TORCH_INDEX ?=#      package index of torch's small CPU wheels, for setup and for the CPU image
PYTHON ?= $(or $(shell command -v python3.11),python3)

export FLAVOUR BASE TORCH_INDEX

given := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
ifneq ($(strip $(given)),)
known := $(shell sed -n 's/^\([A-Z_]*\) ?=.*/\1/p' Makefile) UPGRADE SHELL
$(foreach name,$(filter-out $(known),$(given)),$(error there is no variable $(name): make help lists those there are))
endif

REPRODUCE := .venv/bin/python -m reproduce
quoted = '$(subst ','\'',$(strip $(1)))'
option = $(if $(strip $(2)),$(1) $(call quoted,$(2)))
WHERE = $(call option,--cluster,$(CLUSTER)) $(call option,--cluster-options,$(CLUSTER_OPTIONS))
PICTURES = --scale $(call quoted,$(SCALE)) $(call option,--data,$(DATA)) $(call option,--data-config,$(DATA_CONFIG)) \
	$(if $(SKIP_BAD_IMAGES),--skip-bad-images)
RUNS = $(call option,--seeds,$(SEEDS)) $(WHERE) $(call option,--from,$(FROM)) \
	$(call option,--cores,$(CORES))

JUDGED = $(if $(STRICT),--strict)

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {sub("%", "*", $$1); printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo; echo 'Variables, as in: make reproduce-table3 SEEDS=3 DATA=/pictures DATA_CONFIG=standard'
	@awk -F ' [?]=|# *' '/^[A-Z_]+ [?]=.*#/ {printf "  %-17s %s\n", $$1, $$3}' Makefile
	@echo; for scale in tables/*/; do echo "Tables at scale $$(basename "$$scale"):" \
		$$(ls "$$scale" | sed -n 's/[.]yaml$$//p' | grep -vx recorded); done
	@echo 'Experiments (pretrain-*):' $(basename $(notdir $(wildcard reproduce/conf/experiment/*.yaml)))
	@echo 'Evaluations (evaluate-*):' $(basename $(notdir $(wildcard reproduce/conf/eval/*.yaml)))

smoke: setup ## every evaluation in minutes, on generated pictures: plan, run, check, report
	$(REPRODUCE) reproduce table3 table6 table7 text --scale smoke $(RUNS)

reproduce-%: setup ## make a table: plan, run, check, report (reproduce-table3)
	$(REPRODUCE) reproduce $(call quoted,$*) $(PICTURES) $(RUNS) $(JUDGED) \
		$(if $(SKIP_MISSING_DATA),--skip-missing-data)

plan-%: setup ## show the runs that a table needs
	$(REPRODUCE) plan $(call quoted,$*) $(PICTURES) $(RUNS)

render-%: setup ## write the Kubernetes manifests of the runs that a table needs (CLUSTER=kubernetes)
	$(REPRODUCE) render $(call quoted,$*) $(PICTURES) $(RUNS)

check-%: setup ## judge the cells of a table by what its runs gave
	$(REPRODUCE) check $(call quoted,$*) $(PICTURES) $(RUNS) $(JUDGED)

report-%: setup ## make the page of what was checked
	$(REPRODUCE) report $(call quoted,$*) $(PICTURES) $(RUNS)

pretrain-%: setup ## one pretraining, the same as a table would make it (pretrain-swav_800ep)
	$(REPRODUCE) pretrain $(PICTURES) $(WHERE) -- $(call quoted,$*) $(OVERRIDES)

evaluate-%: setup ## one evaluation, the same as a table would make it (evaluate-knn CHECKPOINT=...)
	$(REPRODUCE) evaluate $(PICTURES) $(WHERE) $(call option,--checkpoint,$(CHECKPOINT)) -- \
		$(call quoted,$*) $(OVERRIDES)

data-verify: setup ## say what of the pictures in DATA is missing, unexpected or broken
	$(REPRODUCE) data-verify $(call option,--data,$(DATA)) $(call option,--data-config,$(DATA_CONFIG)) \
		$(call option,--decode,$(DECODE)) $(SETS)

data-prepare: setup ## unpack the official archives in ARCHIVES into DATA; the same command goes on
	$(REPRODUCE) data-prepare $(call option,--archives,$(ARCHIVES)) $(call option,--data,$(DATA)) \
		$(call option,--data-config,$(DATA_CONFIG)) $(SETS)

data-shard: setup ## write the data sets in DATA as WebDataset shards into SHARDS; the same command goes on
	$(REPRODUCE) data-shard $(call option,--data,$(DATA)) $(call option,--data-config,$(DATA_CONFIG)) \
		$(call option,--shards,$(SHARDS)) $(SETS)

fetch: setup ## download public weights (CHECKPOINT=swav_800ep); without CHECKPOINT, list them
	$(REPRODUCE) fetch $(if $(strip $(CHECKPOINT)),-- $(call quoted,$(CHECKPOINT)))

doctor: ## what this machine is, which tables can run here (DATA=...), and what is missing
	@$(or $(wildcard .venv/bin/python),$(PYTHON)) -m reproduce.harness.doctor \
		$(call option,--data,$(DATA)) $(call option,--data-config,$(DATA_CONFIG))

record: setup ## run the tables of a scale over several seeds and keep their numbers as the expected ones
	$(REPRODUCE) record $(PICTURES) $(RUNS) -- $(TABLES)

setup: ## .venv as the runs need it
	@$(PYTHON) requirements/install.py run

setup-dev: ## .venv as a change needs it
	@$(PYTHON) requirements/install.py dev

lint: setup-dev ## style, formatting, types, and which module may import which
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint docker/Dockerfile

format: setup-dev ## mend style and formatting
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

test: setup-dev ## all tests, on all cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile \
		--ignore=tests/benchmarks --ignore=tests/docker --ignore=tests/cluster

bench: setup-dev ## how fast it is against plain baselines, and against the last time (DATA: folder of photographs)
	.venv/bin/python -m pytest tests/benchmarks -W default::pytest_benchmark.logger.PytestBenchmarkWarning \
		--benchmark-autosave --benchmark-compare $(call option,--pictures,$(DATA))

docker-build: ## the image swav-reproduction:cpu, or FLAVOUR=cuda (docs/docker.md)
	docker/build.sh

docker-test: setup-dev ## build both images and run them, on this machine's Docker engine; no part of CI (docs/docker.md)
	.venv/bin/python -m pytest --verbose tests/docker

cluster-test: setup-dev ## tests on a real SLURM, where this machine has one; no part of CI (docs/clusters.md)
	.venv/bin/python -m pytest --verbose tests/cluster

sky-test: ## the task for clouds, read by SkyPilot itself, in an environment of its own below .cache
	$(PYTHON) -m venv .cache/skypilot
	.cache/skypilot/bin/pip install --quiet pytest skypilot==0.14.1
	.cache/skypilot/bin/python -m pytest --noconftest --override-ini filterwarnings= tests/cluster/test_skypilot.py

lock: setup-dev ## resolve requirements/*.in into the locks; UPGRADE=wandb takes its newest version, too
	set -e; for name in build run nvcc dev; do .venv/bin/uv pip compile --quiet --generate-hashes --allow-unsafe \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url --annotation-style line \
		--custom-compile-command 'make lock' $(call option,--upgrade-package,$(UPGRADE)) \
		requirements/$$name.in --output-file requirements/$$name.txt; done

clean: ## remove .venv and caches; results/ and reports/ stay
	rm -rf .venv .venv.log .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +

.DEFAULT_GOAL := help
.PHONY: help smoke data-prepare data-shard data-verify fetch doctor record setup setup-dev lint format test bench \
	docker-build docker-test cluster-test sky-test lock clean
.DELETE_ON_ERROR:
