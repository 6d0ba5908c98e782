# Everything runs from a virtual environment of its own; only Python 3.10 to 3.13 and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What setup.cfg offers beyond the core. Tests of what is not installed are skipped, with the reason.
EXTRAS ?= test
# Where PyTorch comes from, if not from where all else does: https://download.pytorch.org/whl/cpu has it without CUDA.
TORCH_INDEX ?=
INSTALLED := $(VENV)/.installed-$(EXTRAS)
DEMO ?= build/demo

.PHONY: help install demo test coverage lint types docs fuzz bench bench-gpu release clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## virtual environment with EchoPlan in it

# sam2 is built from source, and its build imports torch: without isolation it takes the one installed here, and no second.
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation 'sam2>=1.1.0'
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(INSTALLED)  ## the main job on phantom data: train five folds, predict held-out patients, report
	$(BIN)/python tests/demo.py --root $(DEMO)

# One worker more than there are cores: what runs on Ray waits a good deal.
test: $(INSTALLED)  ## the test suite
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

coverage: $(INSTALLED)  ## the test suite, slower, with the lines that it runs
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

lint: $(INSTALLED) types  ## ruff and mypy
	$(BIN)/python -m ruff check .

types: $(INSTALLED)  ## mypy alone
	$(BIN)/python -m mypy

# In an environment of its own: the site needs neither PyTorch nor EchoPlan.
docs:  ## the documentation as a site in build/site; fails on a broken link
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet 'mkdocs>=1.6,<2' 'mkdocs-material>=9.5'
	rm -rf build/site-source && mkdir -p build/site-source
	tar -cf - *.md CITATION.cff LICENSE docs echoplan/models/*/*.md echoplan/models/*/LICENSE | tar -xf - -C build/site-source
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict

fuzz: $(INSTALLED)  ## 200,000 damaged files to the readers, 4 to 30 minutes; what they find lies in build/fuzz
	$(BIN)/python tests/fuzz/fuzz.py --inputs 200000 --workers 2 --keep build/fuzz

bench: $(INSTALLED)  ## speed and memory beside peers, a table each
	@start=$$(date +%s); for benchmark in tests/benchmarks/bench_*.py; do \
		echo; echo "== $$benchmark"; own=$$(date +%s); $(BIN)/python $$benchmark || exit 1; \
		echo "== $$benchmark took $$(($$(date +%s) - own)) s"; \
	done; echo; echo "All benchmarks took $$(($$(date +%s) - start)) s"

bench-gpu: $(INSTALLED)  ## all that only a GPU can tell, in under 10 minutes; the table lies in build/bench-gpu.md
	$(BIN)/python tests/benchmarks/gpu.py

release:  ## wheel and sdist in dist/, tried in an empty environment; TAG=1 also tags the version
	PYTHON=$(PYTHON) TAG=$(TAG) .ci/release

clean:  ## remove what was built here
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
