PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= $(shell sh scripts/pick_torch.sh)
RUN    := $(VENV)/bin/python
.PHONY: setup demo demo-sagan demo-editing test test-all test-gpu check format bench bench-table1 bench-step bench-inpainting doctor clean

setup: $(VENV)/.done  ## the environment; TORCH=cpu|cuda|legacy-gpu overrides what this machine suggests
$(VENV)/.done: pyproject.toml constraints/$(TORCH).txt $(wildcard src/saccade/kernels/patchmatch*)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints/$(TORCH).txt -e '.[experiments,sweep,dev]'
	touch $@

demo: setup  ## train on stand-in data, evaluate, and write report.html: a few minutes on two CPU cores
	$(RUN) train.py model=posemorph attention=gpa budget=demo

demo-sagan: setup  ## the same for the GAN: ten stand-in classes at 32x32
	$(RUN) train.py model=sagan attention=ylg budget=demo

demo-editing: setup  ## colorization, inpainting and super-resolution
	$(RUN) train.py model=colorization attention=psal budget=demo
	$(RUN) train.py model=inpainting attention=psal budget=demo
	$(RUN) train.py model=superres attention=psal budget=demo

test: setup  ## the fast suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not slow and not gpu"

test-all: setup  ## with the slow cases
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not gpu"

test-gpu: setup  ## the GPU's suite; fails where there is no GPU
	SACCADE_DEMAND_GPU=1 $(RUN) -m pytest -q -m gpu tests/gpu

check: setup  ## ruff, mypy --strict, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: setup  ## time, memory and error of every attention backend, judged by the bars, with tables and plots
	$(RUN) scripts/bench_attention.py --check --tables --plots

bench-table1: setup  ## memory beside PSAL's Table 1 and GPA's Figure 5, in the papers' layout
	$(RUN) scripts/bench_attention.py --suites memory --tables

bench-step: setup  ## a training step of SAGAN and the attention's share in it, for every backend
	$(RUN) scripts/bench_step.py --check

bench-inpainting: setup  ## processor time and peak memory of a 2700x3300 picture with four holes
	$(RUN) scripts/bench_inpainting.py --out benchmarks

doctor: setup  ## what will and will not run on this machine
	$(RUN) scripts/doctor.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
