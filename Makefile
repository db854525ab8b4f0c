# make demo    install into .venv, generate rooms, pretrain, evaluate, leave pictures and report.html in demo/
# make test    install what the tests need and run them
# make sanitize  run the tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer
# make check   say what this machine, the compiled kernels and the data allow
#
# PYTHON=python3.12     the Python that .venv is made of (3.10 or later)
# VENV=folder           another virtual environment
# TORCH=torch==2.13.0   this torch instead of the one in constraints.txt (any of 2.10 and later)
# CONSTRAINTS=file      other pins than those of constraints.txt (/dev/null: the newest of everything)
# DEMO_ARGS, PYTEST_ARGS  passed on

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
CONSTRAINTS ?= constraints.txt
DEMO_ARGS ?=
PYTEST_ARGS ?=

PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check
PINS := $(VENV)/constraints.txt
KERNELS := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test sanitize check install clean

demo: $(VENV)/.installed
	$(VENV)/bin/pointcept3m demo $(DEMO_ARGS)

test: $(VENV)/.test-installed $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

sanitize: $(VENV)/.test-installed $(VENV)/.installed
	PYTHON=$(VENV)/bin/python sh tools/sanitize.sh

check: $(VENV)/.installed
	$(VENV)/bin/pointcept3m check

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "pointcept3m needs Python 3.10 or later; 'make PYTHON=python3.11 ...' names another one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# With TORCH given, the pins that belong to the other torch go.
$(PINS): $(CONSTRAINTS) | $(VENV)/bin/python
	@sed -E '$(if $(TORCH),/^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/d)' $(CONSTRAINTS) > $@
	@$(if $(TORCH),echo '$(TORCH)' >> $@,true)

# The packages come first, so that the kernels are then built against the torch that is in the environment.
$(VENV)/.requirements: requirements.txt $(PINS)
	@echo "Installing the packages of requirements.txt into $(VENV) (torch is the large one: some minutes)"
	$(PIP) -r requirements.txt -c $(PINS)
	@touch $@

$(VENV)/.installed: $(VENV)/.requirements setup.py pyproject.toml requirements-diffusion.txt requirements-gpu.txt requirements-io.txt requirements-text.txt requirements-view.txt requirements-search.txt requirements-test.txt $(KERNELS)
	@echo "Building pointcept3m's kernels"
	$(PIP) --quiet --no-deps -e .
	@$(VENV)/bin/python -m pointcept3m.ops --status
	@touch $@

$(VENV)/.test-installed: $(VENV)/.requirements requirements-test.txt
	$(PIP) --quiet -r requirements-test.txt -c $(PINS)
	@touch $@

clean:
	rm -rf build dist pointcept3m.egg-info pointcept3m/_ops*.so pointcept3m/_ops_cuda.txt demo .pytest_cache .ruff_cache
	rm -f $(VENV)/.installed $(VENV)/.requirements $(VENV)/.test-installed $(PINS)
