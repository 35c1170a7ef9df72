# make demo | test | torture | lint | docs | gpu | clean; PYTHON=python3.12 chooses the interpreter, which must be 3.11 or later.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test torture lint docs gpu gpu-check gpu-table1 clean

demo: $(INSTALLED)
	$(VENV)/bin/python -m pyro_advbnn.demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Long campaigns of kills, full disks and malformed inputs, and the lock installed from the network.
torture: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m torture

lint: $(INSTALLED)
	$(VENV)/bin/python -m ruff check pyro_advbnn tests examples .ci/gpu
	$(VENV)/bin/python -m mypy

# The pages of docs/ and the reference of all public names as a site; a broken link fails (not with --quiet).
docs: $(INSTALLED)
	$(VENV)/bin/python -m mkdocs build --strict

# On a machine with a GPU and the packages in PYTHON; nothing is installed.
gpu:
	$(MAKE) -k gpu-check gpu-table1

gpu-check gpu-table1:
	PYTHON=$(PYTHON) $(PYTHON) .ci/gpu $(@:gpu-%=%)

# The stamp comes last, so that an installation that broke off is done again.
$(INSTALLED): requirements.lock pyproject.toml $(wildcard pyro_advbnn/bayes/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find pyro_advbnn tests -name __pycache__ -type d -prune -exec rm -rf {} +
