# `make help` lists every target, by the groups that lines with `#:` open. Each target first installs what it needs into .venv (requirements/install.py).
# If a command fails, make prints "Error N" (.venv/bin/python -m reproduce --help explains N) and exits with 2 itself.

#: What to make
SCALE ?= $(if $(BUDGET)$(filter released,$(FROM)),paper,smoke)# smoke (generated images, minutes), lite (CIFAR-10) or paper (to the letter; default with BUDGET or FROM=released)
BUDGET ?=#           GPU-hours: plan-* and reproduce-* take the cells that prove most in so many, e.g. 24 or "24 H100"
SEEDS ?=#            number of seeds of each run (default 1; record-baseline: 20)
FROM ?=#             scratch: train (default); released: evaluate public weights
CHECKPOINT ?=#       what to evaluate or to export: run_id of a pretraining, a file, or released:NAME (fetch-weights lists them)
OVERRIDES ?=#        overrides of the config of pretrain-* or evaluate-*, e.g. "batch_size=128 seed=3"
ONLY_NEW ?=#         1: record-golden leaves what is recorded as it is, unrepeated
SAME_SEED ?=#        1: record-baseline adds only what the first seed's untrained trunks give under all arithmetic here
TABLES ?=#           tables for record-baseline, e.g. "table3 table7" (default all)
STRICT ?=#           1: reproduce-* and check-* fail if any doubt is left, for CI
SKIP_MISSING_DATA ?=# 1: reproduce-* makes the cells whose data exists instead of refusing
PRECISION ?=#        precisions of preflight: fp64, fp32, bf16, fp16 (default "fp64 fp32")
#: Pictures
IMAGES ?=#           your own pictures instead of DATA: class folders, with or without train and val, or a table of labels
DATA ?=#             folder with your images; scale smoke generates its own
DATA_CONFIG ?=#      layout of DATA: a name in reproduce/conf/data, or a YAML file
SKIP_BAD_IMAGES ?=#  1: skip and count unreadable images instead of stopping
DATASETS ?=#         datasets for data-*, e.g. "imagenet voc07" (default all)
DECODE ?=#           images that data-verify decodes: sample (default) or all
ARCHIVES ?=#         folder of the official archives, for data-prepare
SHARDS ?=#           folder that data-shard writes to
#: Where it runs
CORES ?=#            number of cores to use (default all)
CLUSTER ?=#          where to run: local (default), slurm or kubernetes (docs/clusters.md)
CLUSTER_OPTIONS ?=#  your site's options, e.g. "slurm.partition=gpu num_processes=64"
#: Set-up and images
TORCH ?=#            cpu: torch's small CPU build, without CUDA and 5 GB of its libraries, for setup and for the CPU image
TORCH_INDEX ?=#      another package index of such builds
FLAVOUR ?=#          image of docker-build: cpu (default) or cuda
BASE ?=#             base of the images, with Python 3.11 (default: docker/versions.env)
APEX_REPOSITORY ?=#  git mirror of apex for the CUDA image (default: docker/versions.env)
DETECTRON2_REPOSITORY ?=# git mirror of Detectron2 for the CUDA image (default: docker/versions.env)
SOURCES ?=#          folder with git mirrors apex and detectron2, for docker-test
PYTHON ?= $(or $(shell command -v python3.11),python3)

export FLAVOUR BASE TORCH TORCH_INDEX APEX_REPOSITORY DETECTRON2_REPOSITORY

given := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
ifneq ($(strip $(given)),)
known := $(shell sed -n 's/^\([A-Z0-9_]*\) ?=.*/\1/p' Makefile) UPGRADE SHELL
$(foreach name,$(filter-out $(known),$(given)),$(error there is no variable $(name): make help lists the variables))
endif

REPRODUCE := .venv/bin/python -m reproduce
quoted = '$(subst ','\'',$(strip $(1)))'
option = $(if $(strip $(2)),$(1) $(call quoted,$(2)))
CLUSTER_FLAGS = $(call option,--cluster,$(CLUSTER)) $(call option,--cluster-options,$(CLUSTER_OPTIONS))
CATALOG = $(call option,--data,$(DATA)) $(call option,--data-config,$(DATA_CONFIG))
IMAGE_OPTIONS = $(CATALOG) $(call option,--images,$(IMAGES)) $(if $(SKIP_BAD_IMAGES),--skip-bad-images)
DATA_OPTIONS = --scale $(call quoted,$(SCALE)) $(IMAGE_OPTIONS)
RUN_OPTIONS = $(call option,--seeds,$(SEEDS)) $(CLUSTER_FLAGS) $(call option,--from,$(FROM)) $(call option,--budget,$(BUDGET)) \
	$(call option,--cores,$(CORES))

# A variable that a target does not read would change nothing, in silence.
refuse = $(foreach name,$(1),$(if $(findstring command,$(origin $(name))),$(error make $@ takes no $(name): $(2))))
ONE_RUN = $(call refuse,SEEDS FROM BUDGET,it is one run of one seed: OVERRIDES="seed=3")
RECIPES_STAND = $(call refuse,OVERRIDES CHECKPOINT,a table has the recipes of reproduce/conf; pretrain-* and evaluate-* take it)
OWN_SCALE = $(call refuse,SCALE OVERRIDES CHECKPOINT,its scale and recipes are fixed)

PRECISIONS = $(if $(PRECISION),--precision $(foreach each,$(PRECISION),$(call quoted,$(each))))
STRICT_FLAG = $(if $(STRICT),--strict)
SKIP_FLAG = $(if $(SKIP_MISSING_DATA),--skip-missing-data)

LITE_TABLES := table9 table10 table8 crops epochs widths methods

#: Tables

help: ## list targets, variables, tables and configs
	@awk -F ':.*## ' '/^#: / {title = substr($$0, 4)} /^[a-z%-]+:.*## / {if (title) print "\n" title; title = ""; \
		sub("%", "*", $$1); printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables, as in: make reproduce-table3 SEEDS=3 DATA=/images DATA_CONFIG=standard\n'
	@awk -F ' [?]=|# *' '/^#: / {title = substr($$0, 4)} /^[A-Z0-9_]+ [?]=.*#/ {if (title) print "\n" title; title = ""; \
		printf "  %-22s %s\n", $$1, $$3}' Makefile
	@echo; for scale in smoke lite paper; do echo "Tables at scale $$scale:" \
		$$(ls tables/$$scale | sed -n 's/[.]yaml$$//p' | grep -vx recorded); done
	@echo 'Experiments (pretrain-*):' $(basename $(notdir $(wildcard reproduce/conf/experiment/*.yaml))) | fold -sw 118
	@echo 'Evaluations (evaluate-*):' $(basename $(notdir $(wildcard reproduce/conf/eval/*.yaml))) | fold -sw 118

smoke: setup ## every evaluation in minutes, on generated images: plan, run, check, report
	$(OWN_SCALE)$(REPRODUCE) reproduce table3 table6 table7 knn_pooled text --scale smoke $(IMAGE_OPTIONS) $(RUN_OPTIONS) \
		$(STRICT_FLAG) $(SKIP_FLAG)

lite: setup ## the paper's claims and ten methods on CIFAR-10 (DATA=...): five seeds of each, or SEEDS=
	$(OWN_SCALE)$(REPRODUCE) reproduce $(LITE_TABLES) --scale lite $(IMAGE_OPTIONS) $(if $(SEEDS),,--seeds 5) $(RUN_OPTIONS) \
		$(STRICT_FLAG) $(SKIP_FLAG)

reproduce-%: setup ## make a table: plan, run, check, report (reproduce-table3)
	$(RECIPES_STAND)$(REPRODUCE) reproduce $(call quoted,$*) $(DATA_OPTIONS) $(RUN_OPTIONS) $(STRICT_FLAG) $(SKIP_FLAG)

plan-%: setup ## show the runs that a table needs (plan-all: every table and claim)
	$(RECIPES_STAND)$(REPRODUCE) plan $(call quoted,$*) $(DATA_OPTIONS) $(RUN_OPTIONS)

check-%: setup ## compare a table's numbers with the expected ones
	$(RECIPES_STAND)$(REPRODUCE) check $(call quoted,$*) $(DATA_OPTIONS) $(RUN_OPTIONS) $(STRICT_FLAG)

report-%: setup ## make the HTML page of what was checked
	$(RECIPES_STAND)$(REPRODUCE) report $(call quoted,$*) $(DATA_OPTIONS) $(RUN_OPTIONS)

#: Single runs and weights

pretrain-%: setup ## one pretraining, the same as a table would do (pretrain-swav_800ep)
	$(ONE_RUN)$(REPRODUCE) pretrain $(DATA_OPTIONS) $(CLUSTER_FLAGS) -- $(call quoted,$*) $(OVERRIDES)

evaluate-%: setup ## one evaluation, the same as a table would do (evaluate-knn CHECKPOINT=...)
	$(ONE_RUN)$(REPRODUCE) evaluate $(DATA_OPTIONS) $(CLUSTER_FLAGS) $(call option,--checkpoint,$(CHECKPOINT)) -- $(call quoted,$*) $(OVERRIDES)

export: setup ## write the trunk of CHECKPOINT as safetensors and for torchvision, with a model card
	$(REPRODUCE) export --scale $(call quoted,$(SCALE)) $(call option,--checkpoint,$(CHECKPOINT))

pictures: setup ## draw what CHECKPOINT has learned: nearest neighbors, prototypes, a map of features
	$(REPRODUCE) pictures --scale $(call quoted,$(SCALE)) $(call option,--checkpoint,$(CHECKPOINT)) $(call option,--data,$(DATA))

fetch-weights: setup ## download public weights (CHECKPOINT=swav_800ep); without CHECKPOINT, list them
	$(REPRODUCE) fetch-weights $(if $(strip $(CHECKPOINT)),-- $(call quoted,$(CHECKPOINT)))

#: This machine, data, clusters

doctor: ## describe this machine, which tables can run here (DATA=...), and what is missing
	@$(or $(wildcard .venv/bin/python),$(PYTHON)) -m reproduce.harness.doctor $(CATALOG)

preflight: setup ## compare the first steps of every recipe with the recorded ones; needs no data
	$(REPRODUCE) preflight --scale $(call quoted,$(SCALE)) $(PRECISIONS) $(CLUSTER_FLAGS) $(call option,--cores,$(CORES))

data-verify: setup ## report missing, unexpected and broken files in DATA
	$(REPRODUCE) data-verify $(CATALOG) $(call option,--decode,$(DECODE)) $(DATASETS)

data-prepare: setup ## unpack the official archives in ARCHIVES into DATA; the same command resumes
	$(REPRODUCE) data-prepare $(call option,--archives,$(ARCHIVES)) $(CATALOG) $(DATASETS)

data-shard: setup ## write the datasets in DATA as WebDataset shards into SHARDS; the same command resumes
	$(REPRODUCE) data-shard $(CATALOG) $(call option,--shards,$(SHARDS)) $(DATASETS)

render-%: setup ## write the Kubernetes manifests of the runs that a table needs (CLUSTER=kubernetes)
	$(REPRODUCE) render $(call quoted,$*) $(DATA_OPTIONS) $(RUN_OPTIONS)

#: Set-up and images

setup: ## install what runs need into .venv
	@$(PYTHON) requirements/install.py run

docker-build: ## the image swav-reproduction:cpu, or FLAVOUR=cuda (docs/docker.md)
	docker/build.sh

clean: ## remove .venv and caches; keep results/ and reports/
	rm -rf .venv .venv.log .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +

#: Development (CONTRIBUTING.md)

setup-dev: ## install what development needs into .venv
	@$(PYTHON) requirements/install.py dev

lint: setup-dev ## check style, formatting, types and imports between modules
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint docker/Dockerfile

format: setup-dev ## fix style and formatting
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

test: setup-dev ## all tests, on all cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder \
		--ignore=tests/benchmarks --ignore=tests/docker --ignore=tests/cluster

docs: setup-dev ## the pages of docs/ as a site, in site/index.html; a broken link is an error
	.venv/bin/python -m sphinx -W --keep-going --quiet docs site
	@echo "site: site/index.html"

power: setup-dev ## plant faults in recipes one by one: preflight has to name each, under arithmetic it was not recorded with
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m power \
		--numprocesses=auto tests/power

bench: setup-dev ## benchmarks against plain baselines and the last run (DATA: folder of photographs)
	.venv/bin/python -m pytest tests/benchmarks -W default::pytest_benchmark.logger.PytestBenchmarkWarning \
		--benchmark-autosave --benchmark-compare $(call option,--pictures,$(DATA))

gpu-test: setup-dev ## test all that a GPU computes: made for 8 minutes on one CUDA GPU, skipped elsewhere
	TEST_DEVICE=cuda .venv/bin/python -m pytest -m "not power" tests/gpu

gpu-bench: setup-dev ## measure what a CUDA GPU does: images/s, idle share, kNN, ... (DATA: folder of photographs)
	.venv/bin/python -m tests.benchmarks.gpu $(call option,--pictures,$(DATA))

docker-test: setup-dev ## build both images and run them with this machine's Docker; not part of CI (docs/docker.md)
	.venv/bin/python -m pytest --verbose tests/docker $(call option,--sources,$(SOURCES))

cluster-test: setup-dev ## tests on a real SLURM, if this machine has one; not part of CI (docs/clusters.md)
	.venv/bin/python -m pytest --verbose tests/cluster

sky-test: ## check docker/skypilot.yaml with SkyPilot, in an environment of its own below .cache
	$(PYTHON) -m venv .cache/skypilot
	.cache/skypilot/bin/pip install --quiet pytest skypilot==0.14.1
	.cache/skypilot/bin/python -m pytest --noconftest --override-ini filterwarnings= tests/cluster/test_skypilot.py

record-baseline: setup ## run a scale's tables over several seeds and record their numbers as the expected ones
	$(REPRODUCE) record-baseline $(DATA_OPTIONS) $(RUN_OPTIONS) $(if $(SAME_SEED),--same-seed) -- $(TABLES)

recorded-claims: setup ## judge the paper's claims by a scale's recorded numbers (SCALE=lite), without any result
	$(REPRODUCE) recorded-claims --scale $(call quoted,$(SCALE))

record-golden: setup ## record the first steps of every recipe, and measure their tolerances here
	$(REPRODUCE) record-golden --scale $(call quoted,$(SCALE)) $(call option,--cores,$(CORES)) $(if $(ONLY_NEW),--only-new)

lock: setup-dev ## resolve requirements/*.in into the locks; UPGRADE=wandb also upgrades wandb
	set -e; for name in build run nvcc dev; do .venv/bin/uv pip compile --quiet --generate-hashes --allow-unsafe \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url --annotation-style line \
		--custom-compile-command 'make lock' $(call option,--upgrade-package,$(UPGRADE)) \
		requirements/$$name.in --output-file requirements/$$name.txt; done

.DEFAULT_GOAL := help
.PHONY: help smoke lite data-prepare data-shard data-verify export pictures fetch-weights doctor record-baseline recorded-claims setup setup-dev lint format test docs bench \
	power preflight record-golden gpu-test gpu-bench docker-build docker-test cluster-test sky-test lock clean
.DELETE_ON_ERROR:
