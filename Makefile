# make demo                          the quickstart: from a fresh clone to a fine-tuned model
# make lint                          ruff, basedpyright, import-linter
# make checkov                       static analysis of infra/terraform
# make test [ARGS="..."]             the tests, in two processes
# make campaign                      crash tests at random steps, storms, clusters, the GPU kit's dry run; more than an hour
# make weekly [MINUTES=60]          the weekly schedule as a minute cron, with kills and reboots
# make bench [ONLY=name ARGS="..."]  benchmarks
# make gpu-pack                      build/gpu: what a bare machine with a GPU needs, to be copied there with the repository
# make gpu [ARGS="..."]              there: does Cloze work on the GPU, and how fast (tests/gpu)
# make reference                     docs/reference, generated from the configuration classes
# make ui                            run history and schedule in a browser (Dagster)
# .ci/run                            lint, checkov, all tests except the campaign, the quickstart twice

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
CONFIG ?= configs/quickstart.yaml
GPU_PYTHON ?= python3
OUT ?= build/gpu-out
MINUTES ?= 60
CHECKOV := 3.3.30
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

demo: .venv/.installed
	$(BIN)/cloze run $(CONFIG)

test: .venv/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

campaign: .venv/.installed-test
	.ci/with-flink $(BIN)/python -m tests.campaign $(ARGS)

weekly: .venv/.installed-test
	$(BIN)/python -m tests.weekly --minutes $(MINUTES) $(ARGS)

lint: .venv/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright && $(BIN)/lint-imports

checkov: .venv/checkov-$(CHECKOV)/.installed
	$(<D)/bin/checkov --directory infra/terraform --framework terraform --quiet --compact --skip-download

reference: .venv/.installed
	$(BIN)/python -m cloze.infra.config_reference docs/reference

ui: .venv/.installed
	CLOZE_CONFIG="$(CONFIG)" $(BIN)/python -m cloze.infra.workflow

bench: .venv/.installed-bench
	$(BIN)/python -m tests.benchmarks $(ONLY) $(ARGS)

gpu-pack: .venv/.installed
	$(BIN)/python -m tests.gpu.pack $(ARGS)

gpu:
	$(GPU_PYTHON) -m tests.gpu --out "$(OUT)" $(ARGS)

.venv/.installed: constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is missing: install it, or set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.11 or 3.12: set PYTHON=/path/to/python3.11"; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "A C++ compiler is missing: install one, for example with: apt-get install g++"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { echo "creating .venv and installing from constraints.txt (a few minutes)"; rm -rf .venv; $(PYTHON) -m venv .venv; } || \
	  { rm -rf .venv; echo "Python's venv module is missing: install it, for example with: apt-get install python3-venv"; exit 2; }
	@$(INSTALL) -e .
	@touch $@

.venv/.installed-%: .venv/.installed
	@echo "installing the dependencies of 'make $*'"
	@$(INSTALL) -e '.[$*]'
	@touch $@

# A pretrained BERT for slow tests and benchmarks, which otherwise fetch it themselves
.venv/minilm: | .venv/.installed-test
	@$(BIN)/python -m tests.pretrained_bert

# In an environment of its own, as it requires other versions of the packages of constraints.txt.
.venv/checkov-%/.installed: | .venv/.installed
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check checkov==$*
	@touch $@

.PHONY: demo test campaign weekly lint checkov reference ui bench gpu-pack gpu
