# Two commands do everything on a machine that has only python3 (>= 3.11) with venv:
#   make demo   the main job, on real input        make test   the tests
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

PYTHONS ?= 3.11 3.12 3.13

.PHONY: demo test test-all soak fuzz check docs notebooks bench bench-cluster clean

# One stamp per set of needs, so that a second run installs nothing.
$(VENV)/base: setup.cfg setup.py pyproject.toml objserver/wire/_kernel.c objserver/codecs/_budget.c objserver/security/_records.c
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	touch $@
$(VENV)/%: $(VENV)/base
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

demo: $(VENV)/base
	$(PY) -m objserver demo

# First the many short tests, by files, and one more at a time than there are cores, for they often wait; then the
# few long ones, shared out one by one, or a last file would leave a core idle for minutes.  The third run is
# without the compiled part.
LONG := tests/testing tests/demos
PURE := tests/wire tests/codecs tests/client tests/server/test_connection.py tests/server/test_interop.py \
  tests/server/test_bad_input.py tests/security/test_channel.py tests/server/test_encrypted.py
test: $(VENV)/test
	$(PY) -m pytest -n 3 --dist loadfile $(addprefix --ignore ,$(LONG))
	$(PY) -m pytest -n 2 --dist worksteal -o faulthandler_timeout=600 $(LONG)
	OBJSERVER_PURE=1 $(PY) -m pytest -n 2 --dist loadfile $(PURE)

# What takes hours: the searches of the tests with large numbers.
HOURS ?= 1000
soak: $(VENV)/test
	SIMULATED_HOURS=$(HOURS) SIMULATED_FROM=1000000 $(PY) -m pytest -n 2 --dist load -k nothing_is_lost \
	  -o faulthandler_timeout=0 tests/testing/test_simulator.py
	SIMULATED_HOURS=$$(( $(HOURS) / 10 + 1 )) SIMULATED_FROM=1000000 $(PY) -m pytest -n 2 --dist load -k nothing_is_lost \
	  -o faulthandler_timeout=0 tests/testing/test_cluster_simulator.py
	POWER_LOSS_POINTS=2000000 $(PY) -m pytest -n 2 --dist load -k acknowledged_commit_is \
	  -o faulthandler_timeout=0 tests/testing/test_power_loss.py
	FUZZED_FRAMES=1000000000 FUZZED_FROM=1000 $(PY) -m pytest -n 2 --dist load -k broken_frames \
	  -o faulthandler_timeout=0 tests/testing/test_fuzz.py
	KILL_CYCLES=5000 $(PY) -m pytest -n 2 --dist load -o faulthandler_timeout=0 tests/testing/test_kills.py
	CLUSTER_KILLS=2000 CLUSTER_PAUSES=2000 CLUSTER_PARTITIONS=500 CLUSTER_FAILOVERS=200 \
	  $(PY) -m pytest -n 2 --dist load -k notices -o faulthandler_timeout=0 tests/testing/test_cluster_faults.py

# Coverage-guided fuzzing with atheris; for as long as you like.
FUZZ_S ?= 600
fuzz: $(VENV)/test
	$(PY) -m pip install --quiet --disable-pip-version-check atheris || echo "atheris does not install here"
	$(PY) tests/fuzz/atheris_frames.py -max_total_time=$(FUZZ_S)

# The tests under every supported Python that this machine has (on the PATH, or from pyenv).
test-all:
	@for version in $(PYTHONS); do \
	  found=; \
	  for python in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
	    if [ -z "$$found" ] && $$python -c "" 2>/dev/null; then found=$$python; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "== Python $$version is not here"; continue; fi; \
	  echo "== Python $$version: $$found"; \
	  $(MAKE) --no-print-directory test PYTHON=$$found VENV=.venv-$$version || exit 1; \
	done

check: $(VENV)/test $(VENV)/check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

docs: $(VENV)/docs
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "built docs/_build/html/index.html"

notebooks: $(VENV)/test
	$(PY) demos/refresh.py

# Prints the tables, and writes docs/reference/benchmarks.md and its plot; BENCH=--quick only prints, in a minute.
BENCH ?= --write-docs
bench: $(VENV)/bench
	@for peer in zerorpc pycapnp; do \
	  $(PY) -m pip install --quiet --disable-pip-version-check $$peer || echo "$$peer does not install here"; \
	done
	$(PY) -m benchmarks $(BENCH)

# The figures of clusters alone, and the curve of their cost against their size.
bench-cluster: $(VENV)/bench
	$(PY) -m benchmarks.cluster --plot docs/reference/cluster_size.svg

clean:
	rm -f objserver/*/_*.so
	rm -rf $(VENV) .venv-* build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
