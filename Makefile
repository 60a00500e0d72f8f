# Every target sets up what it needs in .venv; the first run on a machine takes minutes, later ones seconds.
PYTHON ?= python3
VENV := .venv
DEMO := demo-output
DEMO_LABELS := person,organization,location,film,song,sports team,award
# A process for each core. A file's tests share one, because they share fixtures.
PARALLEL := --numprocesses auto --dist loadfile
INSTALL_INPUTS := pyproject.toml constraints.txt tools/install.sh

.PHONY: help demo check test adapters chaos docs audit lint clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo  ## Find entities in 300 encyclopedia passages, audit the result, show some of it.
	rm -rf $(DEMO)
	$(VENV)/bin/spanlake extract examples/passages.parquet $(DEMO) --labels "$(DEMO_LABELS)"
	$(VENV)/bin/spanlake audit $(DEMO)
	$(VENV)/bin/spanlake show $(DEMO)

check: lint  ## What to run while writing: style, types and the quick tests that need no Ray.
	$(VENV)/bin/pytest $(PARALLEL) -m "not slow" tests/unit

test: $(VENV)/.installed-dev  ## Run the tests that need no GPU.
	$(VENV)/bin/pytest $(PARALLEL) tests/unit tests/parity
	$(VENV)/bin/pytest tests/browser tests/cluster

adapters: $(VENV)/.installed-adapters  ## Test the adapters inside spaCy, Spark and others (installs 600 MB; Spark needs Java).
	$(VENV)/bin/pytest tests/unit/adapters

chaos: $(VENV)/.installed-dev  ## Kill drivers, workers and machines of clusters at work (20 minutes).
	$(VENV)/bin/pytest tests/chaos

docs: $(VENV)/.installed-dev  ## Build the documentation site into site/.
	$(VENV)/bin/mkdocs build

audit: $(VENV)/.installed-dev  ## Look for known vulnerabilities in what is installed, and write a bill of materials.
	$(VENV)/bin/python -m pip install --constraint constraints.txt pip-audit cyclonedx-bom
	$(VENV)/bin/cyclonedx-py environment $(VENV) --output-format JSON --output-file sbom.json
	$(VENV)/bin/pip-audit --local --skip-editable

lint: $(VENV)/.installed-dev  ## Check style, format and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## Remove the environment and everything the other targets wrote.
	rm -rf $(VENV) $(DEMO) build dist site sbom.json .hypothesis .mypy_cache .pytest_cache .ruff_cache platform/*.egg-info

$(VENV)/.installed-demo: $(INSTALL_INPUTS)
	PYTHON="$(PYTHON)" tools/install.sh $(VENV) ray
	touch $@

$(VENV)/.installed-dev: $(INSTALL_INPUTS)
	PYTHON="$(PYTHON)" tools/install.sh $(VENV) ray,dev
	touch $@

$(VENV)/.installed-adapters: $(INSTALL_INPUTS)
	PYTHON="$(PYTHON)" tools/install.sh $(VENV) ray,dev,adapters
	touch $@
