# `make demo`, `make check` and `make test` are all that a newcomer needs; `make help` lists the rest.

CARGO ?= cargo
BIN := target/release

# A static program at a fixed address: nothing is loaded or relocated when one is started, of which there are thousands, and
# what would have been relocated stays one copy for all.
SHIM_LINKING := -C target-feature=+crt-static -C relocation-model=static
# Where it can do without a C library it has none: to begin one takes longer than to begin all of the shim.
ifeq ($(shell uname -m),x86_64)
SHIM_FEATURES := --no-default-features
SHIM_LINKING += -C link-arg=-nostartfiles -C link-arg=-nostdlib -C link-arg=-static
endif

.PHONY: build failpoints demo check test bench bench-quick profile soak test-v2 lint shellcheck doc deny msrv fuzz format setup \
	install clean help

build: ## build containerd, containerd-shim and ctr into target/release
	$(CARGO) build --locked --profile daemon -p containerd -p ctr
	$(CARGO) rustc --locked --profile shim -p containerd-shim $(SHIM_FEATURES) -- $(SHIM_LINKING)
	install -d $(BIN)
	# By a rename: what runs can be replaced.
	for built in shim/containerd-shim daemon/containerd daemon/ctr; do \
		program=$${built#*/} && install -m 0755 target/$$built $(BIN)/.$$program.new && \
		mv -f $(BIN)/.$$program.new $(BIN)/$$program || exit 1; \
	done

# The daemon and the shim as tests kill them at named steps. Never installed.
failpoints: # in target/failpoints
	$(CARGO) build --locked --release -p containerd --features failpoints
	$(CARGO) rustc --locked --profile shim -p containerd-shim $(SHIM_FEATURES) --features failpoints -- $(SHIM_LINKING)
	install -d target/failpoints
	install -m 0755 target/shim/containerd-shim target/failpoints/.containerd-shim.new
	mv -f target/failpoints/.containerd-shim.new target/failpoints/containerd-shim
	install -m 0755 $(BIN)/containerd target/failpoints/.containerd.new
	mv -f target/failpoints/.containerd.new target/failpoints/containerd

setup: ## install what the demo and the tests need (Debian: runc, crun, a static busybox)
	scripts/setup.sh

demo: ## run a real container under a daemon of its own, and show how
	scripts/setup.sh --demo
	$(MAKE) --no-print-directory build
	scripts/demo.sh

# Builds without optimisation, and so incrementally. PROFILE=--release shares what it builds with `make test`. Unit tests of
# checkpoint archives make devices and extended attributes, which takes root: for other users `make test` has them.
check: lint doc ## what a change must pass before all else: format, lints, documentation, unit tests; without root, in a minute
	$(CARGO) test --locked $(PROFILE) --workspace --lib --bins --test docs -- --quiet $(if $(filter-out 0,$(shell id -u)),--skip archive::)
	$(CARGO) test --locked $(PROFILE) --workspace --doc -- --quiet

test: setup failpoints build ## run every test, with the real daemon and the real runtimes
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked --release --workspace
	RUNTIME=crun scripts/test-v2.sh limits:: stats:: oom::a_ calls::a_paused calls::the_state
	$(MAKE) --no-print-directory soak MINUTES=3

test-v2: build ## run what control groups matter to in a machine with version 2 only, with runc
	$(CARGO) test --locked --release --workspace --no-run
	scripts/test-v2.sh

bench: setup build ## measure beside the bare runtime, on a quiet machine (15 minutes); into target/bench
	$(CARGO) run --locked --release -q -p bench

bench-quick: setup build ## the same with fewer rounds and containers, in three minutes
	$(CARGO) run --locked --release -q -p bench -- --quick

profile: setup build ## where the time of a start and an exec goes: timelines and flame graphs; needs perf
	$(CARGO) build --locked --release -q -p bench
	scripts/profile.sh start
	scripts/profile.sh exec

soak: setup build ## everything at once for MINUTES=n while things are killed at random; SEED=n for the same again
	$(CARGO) run --locked --release -q -p tests --bin soak -- $(MINUTES)

MINUTES ?= 10

# Tests wait for processes more than they compute.
TEST_THREADS ?= 4

lint: shellcheck ## check the format, and lint programs and scripts with warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked $(PROFILE) --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --profile shim -p containerd-shim $(SHIM_FEATURES) -- -D warnings

shellcheck: # needs shellcheck, which `make setup` installs
	@if command -v shellcheck >/dev/null; then shellcheck --severity=style .ci/run scripts/*.sh tests/src/*.sh; \
	elif [ -n "$$CI" ]; then echo "shellcheck is missing" >&2; exit 1; \
	else echo "shellcheck is missing, so that scripts are not checked (Debian: apt-get install shellcheck)" >&2; fi

doc: ## build the documentation of the crates into target/doc, with warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked $(PROFILE) --workspace --no-deps --lib --document-private-items

deny: ## check licenses, duplicate versions, sources and advisories of all dependencies
	scripts/deny.sh

msrv: ## check that the workspace builds with the oldest Rust that is promised, which is Debian 13's
	scripts/msrv.sh

SECONDS ?= 20
fuzz: ## fuzz every parser of foreign bytes for SECONDS=n each; TARGET=name for one of them
	scripts/fuzz.sh $(SECONDS) $(TARGET)

format: ## format the code
	$(CARGO) fmt --all

PREFIX ?= /usr/local
install: build ## install into PREFIX (default /usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	# By a rename: a program that runs can be replaced, and is not half-written for whoever starts it just then.
	for program in containerd-shim containerd ctr; do \
		install -m 0755 $(BIN)/$$program $(DESTDIR)$(PREFIX)/bin/.$$program.new && \
		mv -f $(DESTDIR)$(PREFIX)/bin/.$$program.new $(DESTDIR)$(PREFIX)/bin/$$program || exit 1; \
	done
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin|$(PREFIX)/bin|' packaging/systemd/containerd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/containerd.service
	install -m 0644 packaging/systemd/containerd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/

clean: ## remove what was built
	$(CARGO) clean

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)
