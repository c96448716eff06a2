# What a person types. `make` alone prints this list.
#
# The ONNX Runtime library is the one thing that neither cargo nor the repository brings: models/fetch.py gets it as a
# Python package, by name, version and checksum, into .cache/, and does nothing when it is there.

PYTHON ?= python3
CARGO ?= cargo
CARGO_TARGET_DIR ?= target
LIBRARY := .cache/onnxruntime/libonnxruntime.so
PROGRAM := $(CARGO_TARGET_DIR)/release/undertone

.DEFAULT_GOAL := help
.PHONY: help up demo build test test-kafka test-cassandra test-redis test-registry test-outages check bench fuzz eval models

help: ## Print this list.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: build ## Build, and run everything in one process; state in ./data.
	$(PROGRAM) up

demo: build ## Play a real conversation and draw its emotions in the terminal; keeps nothing.
	$(PROGRAM) demo

build: $(LIBRARY) ## Build the program: target/release/undertone.
	$(CARGO) build --release --locked -p undertone

test: $(LIBRARY) ## Run the whole test suite, on embedded parts.
	$(CARGO) fetch --locked
	$(CARGO) test --workspace --locked

test-kafka: build ## Run what is about the log on an Apache Kafka, installed into .servers/ (needs Java, Maven).
	deploy/servers/kafka with tests/kafka $(PROGRAM)

test-cassandra: $(LIBRARY) ## Run what is about history and contexts on an Apache Cassandra, installed into .servers/ (needs Java, Maven).
	deploy/servers/cassandra with tests/cassandra

test-redis: $(LIBRARY) ## Run what is about contexts behind a Redis (redis-server, or Debian's package into .servers/).
	deploy/servers/redis with tests/redis

test-registry: build ## Run what is about the schema registry on an Apicurio Registry, installed into .servers/ (needs Java 21, Maven).
	deploy/servers/apicurio with tests/apicurio $(PROGRAM)

test-outages: build ## Stop, kill and cut off an Apache Kafka and an Apache Cassandra under load, and count (Java 17, Maven).
	tests/outages $(PROGRAM)

check: $(LIBRARY) ## Format, lints and documentation, as CI checks them.
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps --locked

bench: $(LIBRARY) ## Run the micro-benchmarks.
	$(CARGO) bench --locked -p benchmarks

fuzz: $(LIBRARY) ## Fuzz every parser of foreign bytes: make fuzz SECONDS_EACH=60 (needs cargo install cargo-fuzz)
	tests/fuzz/run $(or $(SECONDS_EACH),60)

eval: build ## Score the models on labelled texts: make eval DATA=dev.jsonl
	$(PROGRAM) eval emotion --data "$(DATA)"

models: ## Train and export the models anew: make models DATA_DIR=…
	$(MAKE) -C models DATA_DIR="$(abspath $(DATA_DIR))"

$(LIBRARY): models/fetch.py
	$(PYTHON) models/fetch.py
	@touch $@
