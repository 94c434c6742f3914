# elm_neuro: needs make and Python 3.11 or newer (with venv), nothing else. `make help` lists the commands.
#
# Everything is installed into .venv with the versions of constraints.txt. An interrupted installation is taken up again by
# the next command: a stamp inside .venv is written only at the end, and is older than pyproject.toml, constraints.txt or the
# sources of the native backend when one of them changed.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

# make PYTHON=/path/to/python3.12: the interpreter for .venv. By default the first of these that runs and is new enough;
# 3.11 comes first because every package of the constraints has a wheel for it that needs no compiler.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)

# make TORCH_INDEX=https://download.pytorch.org/whl/cpu: a further package index, here the CPU builds of torch (on Linux the
# default ones bring several GB of CUDA).
TORCH_INDEX ?=
PIP_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# A borrowed machine with a GPU may have no network: what runs there takes what is installed.
GPU_PYTHON := $(or $(wildcard $(BIN)/python),$(PYTHON),python3)

ALL_STAMP := $(VENV)/.installed-all
DEMO_STAMP := $(VENV)/.installed-demo
# The demo is content with what `make test` installed.
DEMO_READY := $(if $(wildcard $(ALL_STAMP)),$(ALL_STAMP),$(DEMO_STAMP))

# The first line silences an advertisement of the theme; a busy machine must not make tutorials wait for each other's threads.
MKDOCS := NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=2 PYTHONWARNINGS=ignore::DeprecationWarning $(BIN)/mkdocs

# Installing compiles the native backend where there is a compiler.
BUILT_FROM := pyproject.toml constraints.txt setup.py $(wildcard elm_neuro/backends/native/*.cpp elm_neuro/backends/native/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo docs docs-serve test test-all test-live test-ranges test-gpu sanitize-gpu lint format bench bench-gpu clean

# .venv does not survive a move of the checkout: its scripts hold the old path.
ifneq ($(shell cat $(VENV)/.home 2>/dev/null),$(CURDIR))
.PHONY: $(ALL_STAMP) $(DEMO_STAMP)
endif

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  variables: PYTHON=/path/to/python3.12       interpreter for .venv (3.11 or newer)"
	@echo "             TORCH_INDEX=https://download.pytorch.org/whl/cpu   CPU builds of torch, saves several GB on Linux"
	@echo "             ARGS='...'                       further arguments of elm-neuro demo, pytest or the benchmark"
	@echo "             JOBS=2                           test processes      UPSTREAM=path   checkout of the authors' code (bench)"

demo: $(DEMO_READY)  ## train a spiking network with an ELM layer to add spoken digits and write a report (minutes)
	$(BIN)/elm-neuro demo $(ARGS)

test: lint  ## linters, types and the tests (under 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) -m "not slow" $(ARGS)

test-all: lint  ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) $(ARGS)

test-live: $(ALL_STAMP)  ## the living neuron's page in a browser: brings playwright, and a Chromium where none is installed
	$(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt playwright
	command -v chromium >/dev/null || $(BIN)/playwright install chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 tests/live $(ARGS)

docs: $(ALL_STAMP)  ## build the documentation into site/, tutorials run, a warning is an error (minutes)
	$(MKDOCS) build $(ARGS)

docs-serve: $(ALL_STAMP)  ## show the documentation at http://127.0.0.1:8000 and build it again as it is written
	DOCS_CACHE=true $(MKDOCS) serve --watch elm_neuro --watch adapters --watch export $(ARGS)

test-ranges:  ## both ends of all declared ranges of Python and packages, each in an environment of its own in .ranges/
	$(or $(PYTHON),python3) tests/ranges.py --jobs $(JOBS) $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) $(ARGS)

lint: $(ALL_STAMP)  ## ruff, mypy and the contracts of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(ALL_STAMP)  ## sort imports and lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(ALL_STAMP)  ## speed of the neuron against its peers on the CPU
	$(BIN)/python benchmarks/neuron_speed.py $(if $(UPSTREAM),--upstream "$(UPSTREAM)") $(ARGS)

test-gpu:  ## tests on an NVIDIA GPU; installs nothing: .venv where it is there, else python3 with torch and pytest
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -c tests/gpu/pytest.ini --rootdir=. --confcutdir=tests tests/gpu tests/devices -q --tb=short -ra $(ARGS)

bench-gpu:  ## speed on an NVIDIA GPU against cuDNN and torch, in reports/gpu_speed.json too; installs nothing
	mkdir -p reports
	PYTHONPATH=. $(GPU_PYTHON) benchmarks/gpu_speed.py --out reports $(ARGS)

# initcheck has to see what torch's kernels write, the others look at ours alone
sanitize-gpu:  ## the kernels under compute-sanitizer of the CUDA toolkit: memory, races, barriers, uninitialised reads
	@command -v compute-sanitizer > /dev/null || { echo "skipped: no compute-sanitizer (CUDA toolkit)"; exit 0; }; \
	mkdir -p reports; \
	for tool in memcheck racecheck synccheck initcheck; do \
	  only="--kernel-regex kns=elm_"; [ $$tool != initcheck ] || only=; \
	  PYTHONPATH=. PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 $$only \
	    --print-limit 5 $(GPU_PYTHON) -m pytest -c tests/gpu/pytest.ini --rootdir=. tests/gpu/test_cuda.py tests/gpu/test_alif.py tests/gpu/test_network.py -q -x --tb=short \
	    -k "equal_the_reference or many_channels or frames_of_bytes or gradient_of_blocks" $(ARGS) > reports/sanitize_$$tool.txt 2>&1; \
	  status=$$?; echo "$$tool:"; tail -12 reports/sanitize_$$tool.txt; [ $$status = 0 ] || exit $$status; \
	done

clean:  ## remove .venv, builds and caches; reports stay
	rm -rf $(VENV) .ranges build dist site .cache *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find elm_neuro adapters export examples benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(ALL_STAMP): $(BUILT_FROM)
	@$(create_venv)
	$(call install,.[all$(comma)dev$(comma)docs])
	@touch $@

$(DEMO_STAMP): $(BUILT_FROM)
	@$(create_venv)
	$(call install,.[data$(comma)train$(comma)onnx])
	@touch $@

comma := ,

# A .venv that runs and was made here is kept, so that an interrupted installation goes on where it was.
define create_venv
set -e; \
if [ "$$(cat $(VENV)/.home 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c 'import pip' 2>/dev/null; then exit 0; fi; \
found=; seen=; \
for python in $(CANDIDATES); do \
	version=$$("$$python" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	seen="$$seen $$python ($$version)"; \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then found=$$python; break; fi; \
done; \
if [ -z "$$found" ]; then \
	echo "elm_neuro needs Python 3.11 or newer with its venv module; tried: $(CANDIDATES); these run:$${seen:- none}." >&2; \
	echo "Install one (Debian, Ubuntu: python3 and python3-venv) or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1; \
fi; \
echo "Setting up $(VENV) with $$found ($$version)"; \
if [ -z "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	echo "No NVIDIA GPU seen: make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu would install the CPU build of torch, which saves several GB."; \
fi; \
rm -rf $(VENV); \
"$$found" -m venv $(VENV); \
printf '%s' "$(CURDIR)" > $(VENV)/.home
endef

# norse and spikingjelly bring torchvision and torchaudio, which nothing here needs. Beside a CPU build of torch their import
# may fail, and with it that of torchmetrics and Lightning: then they are taken out again.
define install
@echo "Installing packages, then compiling the native backend where there is a C++ compiler (a minute or two, in silence)"
$(BIN)/python -m pip --disable-pip-version-check install $(PIP_INDEX) -c constraints.txt -e '$(1)'
@for name in torchvision torchaudio; do \
	$(BIN)/python -c "import $$name" >/dev/null 2>&1 || $(BIN)/python -m pip --disable-pip-version-check uninstall -q -y $$name 2>/dev/null; \
done
endef
