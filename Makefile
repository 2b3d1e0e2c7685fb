# Every target prepares .venv itself (launch/bootstrap.py, instant when nothing changed); nothing is installed outside it.
# Choices: make demo PYTHON=python3.12 | CRISOL_TORCH=cpu or cuda | ARGS="further words for the command"
# The first two are remembered with .venv until `make clean` or another choice.

PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
CRISOL_TORCH ?= auto
BOOTSTRAP = $(PYTHON) launch/bootstrap.py --venv .venv --torch "$(CRISOL_TORCH)"
BIN = .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo sweep plan test soak bench check format lock pictures install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: ## text -> tokenizer -> shards -> training -> loss curve and sample, in minutes on a laptop
	@$(BOOTSTRAP)
	@$(BIN)/python -m launch.demo $(ARGS)

sweep: ## a scaling law in 40 minutes on two cores, and a larger run foretold, trained and scored
	@$(BOOTSTRAP)
	@$(BIN)/python -m data_prep source=python_site out=data/site tokenizer.vocab_size=512
	@$(BIN)/python -m launch sweep sweep=demo start=true $(ARGS)

plan: ## what a run needs in memory, time and money: make plan ARGS="experiment=debug"
	@$(BOOTSTRAP)
	@$(BIN)/python -m launch plan $(ARGS)

test: ## the whole test-suite on CPU: make test ARGS="tests/launch -x"
	@$(BOOTSTRAP) --extras test
	@$(BIN)/python -m pytest -q $(ARGS)

soak: ## an hour of runs hurt at random, each compared with one that was not: make soak ARGS="seed=7 minutes=5"
	@$(BOOTSTRAP) --extras test
	@$(BIN)/python -m tests.faults.soak $(ARGS)

bench: ## the benchmark tables: encoding against the bare loop, the loader, and what safety costs
	@$(BOOTSTRAP) --extras test
	@$(BIN)/python -m tests.benchmarks.encode $(ARGS)
	@$(BIN)/python -m tests.benchmarks.loader
	@$(BIN)/python -m tests.benchmarks.safety

check: ## formatting, lint and types, changing nothing
	@$(BOOTSTRAP) --extras test,dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: ## rewrite the code in the house format and fix what ruff can fix
	@$(BOOTSTRAP) --extras test,dev
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

lock: ## solve all dependencies anew into constraints.txt
	@$(BOOTSTRAP) --extras test,dev
	@{ echo '# The exact versions that `make` installs, test and dev tools included. Written by `make lock`; do not edit.'; \
	   echo '# torch==2.x.y here also accepts the build 2.x.y+cpu where pip is shown one; packages only CUDA needs wait unused.'; \
	   $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --upgrade \
	     --extra test --extra dev pyproject.toml; } > constraints.txt.new && mv constraints.txt.new constraints.txt

install: ## only prepare .venv, with the test and dev tools
	@$(BOOTSTRAP) --extras test,dev

pictures: ## the pictures of docs/ anew: real runs, a real browser (chromium on the path)
	@$(BOOTSTRAP) --extras test
	@$(BIN)/python docs/pictures.py $(ARGS)

clean: ## remove .venv and caches; runs/, sweeps/ and data/ are yours and stay
	rm -rf .venv .pytest_cache .ruff_cache
	find train model data_prep launch conf tests -name __pycache__ -prune -exec rm -rf {} +
