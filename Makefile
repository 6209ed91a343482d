# The verbs of this project. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# A virtual machine may announce AMX and not let programs use it: llama.cpp compiled for it crashes at its first token.
ifneq (,$(shell grep -m1 -E '\bhypervisor\b.*\bamx_int8\b' /proc/cpuinfo 2>/dev/null))
export CFLAGS += -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
export CXXFLAGS += -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
endif

.PHONY: serve test test-long lint bench pocket mutants clean debian-packages

serve: $(VENV)/.serve
	$(PY) main.py --profile pocket

# Bytecode is kept, or each of a hundred gateways would compile all modules anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test debian-packages
	$(PYTEST) -m "not long"

test-long: $(VENV)/.test debian-packages  # killed processes, full memory, many loads, queues, every family's answers
	$(PYTEST) -m long

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.test
	$(PY) -m bench.cycles
	$(PY) -m bench.simulate
	$(PY) -m bench.overhead
	$(PY) -m bench.overload
	$(PY) -m bench.load
	$(PY) -m bench.throughput
	$(PY) -m bench.swap

pocket: $(VENV)/.serve
	$(PY) -m pocket

debian-packages:  # programs that tests start; only as root, elsewhere their tests skip and name them
	tests/install-debian-packages.sh

mutants: $(VENV)/.test  # faults put into pure modules: which do their tests notice? Takes tens of minutes
	$(PY) -m tests.mutants

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.serve: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test: requirements.txt requirements-dev.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.serve
