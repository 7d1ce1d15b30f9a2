# make bench   the main job from a fresh clone: environment, install, score Fwd2Bot at 16 tokens beside the full model
# make test    the same for the tests
# make check   lint, format and types        make wheel   dist/*.whl        make clean   remove the environment
# make docs    site/html, the pages as a site
# make lock    uv.lock and constraints.txt, the versions that all of these install, anew (needs uv and a network)
#
# PYTHON=python3.12 picks another interpreter, VENV=path another place for the environment. An environment of your own
# is used as it is with VENV=/path/to/env. pip's own configuration (index, proxies, find-links) is honoured.

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.vtc-installed
TOOLS  := $(VENV)/.vtc-tools
JOBS   ?= 2

# Two threads a process is what a laptop has to give; torch would otherwise start one a core in every test worker.
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false
# Tests start hundreds of processes; where Python may keep no bytecode, each would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench test check format wheel docs install lock clean help

bench: $(STAMP)
	$(PY) -m vtc method=fwd2bot tokens=16

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(TOOLS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TOOLS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

wheel: $(STAMP)
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

docs: $(TOOLS)
	$(PY) docs/tools/website.py --out site

install: $(TOOLS)

# Both are made again only when the requirements change. What `make bench` runs is installed first, and what tests,
# lint and documentation need besides when one of them is asked for. pip says nothing for minutes; a line a minute does.
define pip_install
	@{ while sleep 60 >/dev/null 2>&1; do echo "  $$(du -sm $(VENV) | cut -f1) MB so far"; done & } ; beat=$$!; \
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.$(1)'; \
	code=$$?; kill $$beat; exit $$code
endef

$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vtc needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing vtc and what it needs into $(VENV): about 7 GB and 5 minutes, once"
	$(call pip_install,)
	@touch $@

$(TOOLS): $(STAMP)
	@echo "installing what tests and documentation need"
	$(call pip_install,[dev])
	@touch $@

UV ?= uv
define CONSTRAINTS_HEAD
# The versions of uv.lock for pip, Python 3.10 to 3.13: `make lock` writes both. `make bench` and `make test` install these;
# the package itself allows a range of each (pyproject.toml).
endef
export CONSTRAINTS_HEAD

lock:
	$(UV) lock $(ARGS)
	@{ echo "$$CONSTRAINTS_HEAD"; $(UV) export --quiet --frozen --all-extras --no-emit-project --no-hashes --no-annotate --no-header; } > constraints.txt.part
	@mv constraints.txt.part constraints.txt

clean:
	rm -rf $(VENV) dist build site

help:
	@sed -n '1,9p' Makefile
