# Everything this project needs lives in .venv; each target sets it up first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.PHONY: run test check format sample lock clean
.DEFAULT_GOAL := run

run: $(READY)  ## start everything on this machine and show the bundled CI runs (ARGS=--once: report, then exit)
	@$(BIN)/ci-pipeline up $(ARGS)

test: $(READY)  ## all tests (ARGS='-m "not slow"' for the quick ones)
	@$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(READY)  ## lint, format check, strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

sample: $(READY)  ## record the bundled CI runs anew, by really running pytest
	@$(BIN)/python -m ci_pipeline.sample.build

lock: $(READY)  ## pin the newest versions that pyproject.toml admits: names, versions, hashes
	@$(BIN)/uv pip compile --quiet --upgrade --universal --extra dev --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .ci-pipeline

# uv installs in half the time that pip needs; the machine's own pip brings it, checked against the same lock: an
# environment with a pip in it needs more than python3 and pip on Debian.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("python3 is %d.%d, 3.11 or newer is needed: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@echo "Installing into .venv ..."
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q ci_pipeline
	@touch $@
