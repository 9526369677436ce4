# The two commands of the README are `make demo` and `make test`; a contributor has a third, `make check`.
# Another Python: make test PYTHON=python3.12. Another environment: make test VENV=other. Some tests: make test ARGS=tests/text.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= The for statement is used to
RUN := runs/demo
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench tree lines docs docs-serve

help:  ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /make \1 - /p' $(MAKEFILE_LIST)

demo: $(VENV)/plot.stamp  ## train on the documentation inside Python for two minutes (once), then complete a prompt
	@if [ -e $(RUN)/run.json ]; then echo "$(RUN) is there already: going on with it; rm -r $(RUN) trains anew"; \
	  $(BIN)/nextile train --resume $(RUN); \
	else $(BIN)/nextile train python-docs --minutes 2 --out $(RUN); fi
	$(BIN)/nextile generate $(RUN) "$(PROMPT)" --max-tokens 120

test: $(VENV)/dev.stamp  ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/dev.stamp  ## all tests
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/dev.stamp  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/dev.stamp  ## measure speed against the peers, one script after the other
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

tree: $(VENV)/dev.stamp  ## write the README's tree anew from the first sentence of every file
	$(BIN)/python docs/make_tree.py

lines: $(VENV)/dev.stamp  ## write the numbers in the pages' links to lines of code anew
	$(BIN)/python docs/make_lines.py

docs: $(VENV)/dev.stamp  ## build the site of the documentation: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/dev.stamp  ## the same on port 8000, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --no-strict

# --- the environment: each stamp is written when what it names is installed --------------------------------------

$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "this is Python %d.%d, nextile needs 3.11 or newer: name one by PYTHON=python3.12" % sys.version_info[:2] or 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	@touch $@

$(VENV)/plot.stamp: $(VENV)/torch.stamp pyproject.toml
	$(INSTALL) --editable '.[plot]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(INSTALL) --editable '.[dev]'
	@touch $@
