# Two commands do everything on a machine that has only python3 (>= 3.11) with venv:
#   make demo   the main job, on real input        make test   the tests
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

.PHONY: demo test check docs notebooks bench clean

# One stamp per set of needs, so that a second run installs nothing.
$(VENV)/base: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	touch $@
$(VENV)/%: $(VENV)/base
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

demo: $(VENV)/base
	$(PY) -m objserver demo

test: $(VENV)/test
	$(PY) -m pytest -n 2 --dist loadfile

check: $(VENV)/test $(VENV)/check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

docs: $(VENV)/docs
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "built docs/_build/html/index.html"

notebooks: $(VENV)/test
	$(PY) demos/refresh.py

bench: $(VENV)/bench
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
