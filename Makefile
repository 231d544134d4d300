# `make` lists the targets. Extra arguments: make test ARGS='flow::', make run ARGS='--roles api,dispatch'.
.DEFAULT_GOAL := help
.PHONY: help services stop-services run test check build fmt openapi bench need-cargo

# rustup's directory is not on the PATH of every shell that was open when it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin
OUT := $(or $(CARGO_TARGET_DIR),target)
LOCKED := $(if $(CI),--locked)

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

services: ## Make PostgreSQL and RabbitMQ available; prints the variables to export
	@deploy/services.sh

stop-services: ## Stop what `make services` started, and nothing else
	@deploy/services.sh stop

run: need-cargo ## Services, build, migrations, simulator and gateway with a demonstration; Ctrl-C ends it
	@vars="$$(deploy/services.sh)" && eval "$$vars" && cargo build $(LOCKED) && exec "$(OUT)/debug/switchboard" serve --dev $(ARGS)

# The documentation's examples run first, so that the summary of the suite is what stands at the end.
test: need-cargo ## The whole suite, against real services and in a real browser
	@deploy/browser.sh || echo "test: without a browser the tests of the pairing page fail" >&2
	@vars="$$(deploy/services.sh)" && eval "$$vars" && \
	if command -v cargo-nextest >/dev/null 2>&1; then \
		cargo test $(LOCKED) -q --doc && exec cargo nextest run $(LOCKED) $(ARGS); \
	else \
		echo "test: cargo-nextest is not installed, using cargo test (https://nexte.st runs the suite faster)" >&2; \
		exec cargo test $(LOCKED) --no-fail-fast $(ARGS); \
	fi

check: need-cargo ## Format, lints, docs, licences, and whether openapi/openapi.json is up to date
	cargo fmt --check
	deploy/licences.sh
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --lib --no-deps --document-private-items
	cargo run $(LOCKED) -q -- openapi --check

build: need-cargo ## Release build
	cargo build $(LOCKED) --release

fmt: need-cargo ## Format the sources
	cargo fmt

openapi: need-cargo ## Write openapi/openapi.json
	@mkdir -p openapi
	cargo run $(LOCKED) -q -- openapi > openapi/openapi.json.new || { rm -f openapi/openapi.json.new; exit 1; }
	@mv openapi/openapi.json.new openapi/openapi.json

bench: need-cargo ## Release build, then the figures of this machine
	@vars="$$(deploy/services.sh)" && eval "$$vars" && cargo build $(LOCKED) --release && exec "$(OUT)/release/switchboard" bench $(ARGS)

need-cargo:
	@command -v cargo >/dev/null 2>&1 || { \
		echo "cargo is missing: install Rust 1.91 or later from https://rustup.rs and try again" >&2; exit 1; }
