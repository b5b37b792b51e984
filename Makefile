# Every target sets up .venv first where that is needed.
BIN := .venv/bin

.PHONY: help setup speedrun test gpu gates lint types guard faults audit lock clean

help:
	@echo "make speedrun   set up, then train a network to 94 % on CIFAR-10 (ARGS=... are passed on)"
	@echo "make test       set up, then run the tests"
	@echo "make gpu        set up, then check and measure a GPU within 10 minutes"
	@echo "make gates      set up, then measure what two quiet cores must reach, and fail where they do not"
	@echo "make guard      set up, then run the tests of compiled code with every block of memory guarded"
	@echo "make faults     set up, then do for 10 minutes what goes wrong, and count"
	@echo "make audit      set up, then check pins, hashes and known vulnerabilities"
	@echo "make lint types set up, then ruff and mypy"

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup

speedrun: setup
	@$(BIN)/fastcifar speedrun $(ARGS)

# Everything a GPU should be asked, within 10 minutes: kernels against the reference, GPU tests, bench, speedrun.
gpu: setup
	@$(BIN)/fastcifar bench gpu $(ARGS)

# What two cores must reach, on a machine with nothing else to do: a few minutes.
gates: setup
	@$(BIN)/fastcifar bench loaders --no-peers --out .venv/gates --assert-min loaders.resident.crop_flip.bf16.images_s=8e5 $(ARGS)
	@$(BIN)/fastcifar bench convert --out .venv/gates --assert-max convert.npy.copies1.seconds=1 \
		--assert-max convert.ffcv.copies1.seconds=2 --assert-max convert.dali.copies1.seconds=2 $(ARGS)

# A worker for each core: tests use one thread each.
test: setup
	$(BIN)/python -m pytest -n auto $(ARGS)

# Tests of compiled code under an allocator that finds what goes beyond a block of memory.
GUARDED := $(addprefix tests/test_,kernels.py kernels_colour.py kernels_draw.py kernels_errors.py convolution.py direct.py \
	maps.py products.py optimizers.py models.py pipelines.py training.py)
guard: setup
	@$(CC) -O2 -shared -fPIC -o .venv/guard.so tests/guard/guard.c
	LD_PRELOAD=$(CURDIR)/.venv/guard.so $(BIN)/python -m pytest -n auto $(or $(ARGS),$(GUARDED))

# What goes wrong in the world, done to it: ten minutes, a report at the end. ARGS="--minutes 2 --only fuzz".
faults: setup
	@PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

# Whether what is installed is what is pinned, and known vulnerabilities.
audit: setup
	@bash .ci/audit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' package-dir, so it gets a tree of links laid out as the packages are installed.
types: setup
	@rm -rf .types && mkdir -p .types/fastcifar
	@for entry in fastcifar/*; do ln -s ../../$$entry .types/$$entry; done
	@for name in pipelines kernels bench; do ln -s ../../$$name .types/fastcifar/$$name; done
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml -p fastcifar

# Resolve the pins anew, keeping what they are where that is possible.
lock: setup
	$(BIN)/python -m venv .venv/lock && .venv/lock/bin/pip install -q uv
	.venv/lock/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --extra dali --extra cuda --extra sweep --extra bench --extra ffcv --extra dev -o constraints.txt
	sed -i '1i # The exact versions that set-up installs, with the hashes of their files. Written by: make lock' constraints.txt

clean:
	rm -rf .venv .types build *.egg-info
