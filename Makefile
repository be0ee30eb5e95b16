# Two commands do everything: `make demo` and `make test`. Both create and reuse .venv themselves.
.PHONY: help demo test check lint format benchmark docs clean
.DEFAULT_GOAL := help

RUN := scripts/run.sh
DEMO ?= demo
RESULTS ?= benchmarks/results
PYTEST_ARGS ?=
# Test processes; each has a Spark session of its own.
JOBS ?= 2

help:
	@echo "make demo       install, and run the whole pipeline on this machine"
	@echo "make test       install, lint, check types, run every test"
	@echo "make check      install, lint, check types, run the tests that need no Spark session"
	@echo "make lint       ruff, mypy and numpydoc only"
	@echo "make format     let ruff format"
	@echo "make benchmark  measure against peers: DATA=..., see benchmarks/all.sh (most of a day)"
	@echo "make docs       rewrite what docs/ has of the code: keys, objectives, architecture.svg"
	@echo "make clean      remove everything that these commands made"

demo:
	@scripts/install.sh demo
	@$(RUN) wals-spark demo --directory $(DEMO)

test: lint
	@$(RUN) python -m wals_spark.cluster.class_archive
	@$(RUN) python -m pytest -n $(JOBS) $(PYTEST_ARGS)

check: lint
	@$(RUN) python -m pytest -n $(JOBS) tests/unit -m "not spark and not slow" $(PYTEST_ARGS)

lint:
	@scripts/install.sh dev
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) python scripts/check_docstrings.py

format:
	@scripts/install.sh dev
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

benchmark:
	@scripts/install.sh dev,benchmark
	@$(RUN) benchmarks/all.sh $(or $(DATA),$(error DATA is missing: make benchmark DATA=<directory of the real data>)) $(RESULTS) $(GLOVE)

docs:
	@scripts/install.sh dev
	@( echo "# Configuration"; echo; echo "Made by \`make docs\` from the code."; echo; $(RUN) wals-spark config --reference ) > docs/configuration.md
	@$(RUN) python scripts/document_objectives.py docs/objectives.md
	@$(RUN) python scripts/draw_architecture.py

clean:
	rm -rf $(DEMO) .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache spark-warehouse metastore_db derby.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
