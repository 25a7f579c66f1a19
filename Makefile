# Everything a person types. Each target makes the environment it needs from the pinned, hashed requirements.
#   make serve     serve the models in models/ (no torch)     make test      all tests
#   make retrain   train, evaluate, export, publish           make lint      ruff and mypy
#   make protos    remake the gRPC stubs                      make lock      remake requirements/
#   make bench     the whole benchmark of docs/benchmarks.md, which it rewrites; ten minutes
#   make bench-serve   the server against its two ceilings: the engine alone, and gRPC alone
#   make audit     ask for known weaknesses of the pinned versions (needs the network; exit status 3: not asked)
#   make docs      remake what documents and deploy/ repeat of the code

PYTHON ?= python3
SERVE := .venv
DEV := .venv-dev
AUDIT := .venv-audit
# DATA: the original CIFAR-10 by default; or a folder or tar archive of pictures, train/<class>/ and test/<class>/.
DATA ?= cifar10
# EXTRA: what `make serve` computes with: cpu, openvino (also where the processor is not Intel's) or gpu.
EXTRA ?= cpu
ARGS ?=
# JOBS: processes that share the tests, a file at a time; 0 for none, as a debugger wants it.
JOBS ?= 2

.PHONY: serve test retrain bench bench-serve audit lint format protos docs lock clean

serve: $(SERVE)/.made-$(EXTRA)
	$(SERVE)/bin/cifarserve serve $(ARGS)

test: $(DEV)/.made
	$(DEV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

retrain: $(DEV)/.made
	$(DEV)/bin/cifarserve retrain --data $(DATA) $(ARGS)

bench: $(DEV)/.made
	$(DEV)/bin/python benchmarks/run.py $(ARGS)

bench-serve: $(DEV)/.made
	$(DEV)/bin/python benchmarks/serve.py $(ARGS)

# Its own environment: what looks for weaknesses is no part of what is looked at.
audit: $(AUDIT)/.made
	$(AUDIT)/bin/python requirements/audit.py $(ARGS)

lint: $(DEV)/.made
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

format: $(DEV)/.made
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

protos: $(DEV)/.made
	$(DEV)/bin/python protos/generate.py protos

docs: $(DEV)/.made
	$(DEV)/bin/python docs/generate.py

# uv comes from a hashed file too; it installs the rest several times faster than pip, in parallel.
$(SERVE)/.made-%: requirements/bootstrap.txt requirements/%.txt pyproject.toml
	$(PYTHON) -m venv --clear $(SERVE)
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(SERVE)/bin/uv pip install --quiet --python $(SERVE)/bin/python --require-hashes -r requirements/$*.txt
	$(SERVE)/bin/uv pip install --quiet --python $(SERVE)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(DEV)/.made: requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(DEV)/bin/uv pip install --quiet --python $(DEV)/bin/python --require-hashes -r requirements/dev.txt
	$(DEV)/bin/uv pip install --quiet --python $(DEV)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(AUDIT)/.made: requirements/audit.txt
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	touch $@

# Resolved for every Python and platform that pyproject.toml admits. --upgrade takes the newest of everything.
COMPILE = $(DEV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-annotate --upgrade
lock: $(DEV)/.made
	$(COMPILE) requirements/bootstrap.in --output-file requirements/bootstrap.txt
	$(COMPILE) requirements/audit.in --output-file requirements/audit.txt
	$(COMPILE) pyproject.toml --extra cpu --output-file requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --output-file requirements/gpu.txt
	$(COMPILE) pyproject.toml --extra openvino --constraints requirements/cpu.txt --output-file requirements/openvino.txt
	$(COMPILE) pyproject.toml --extra otel --constraints requirements/cpu.txt --output-file requirements/otel.txt
	$(COMPILE) pyproject.toml --extra loadtest --constraints requirements/cpu.txt --output-file requirements/loadtest.txt
	$(COMPILE) pyproject.toml --extra cpu --extra train --output-file requirements/train.txt
	$(COMPILE) pyproject.toml --extra cpu --extra otel --extra train --group dev --output-file requirements/dev.txt

clean:
	rm -rf $(SERVE) $(DEV) $(AUDIT) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
