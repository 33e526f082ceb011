# What a developer types; `make` alone lists it. Python packages go into .venv, from setup.cfg.
# Debian packages that are missing are installed when root asks; anybody else is told their names.

PYTHON ?= python3
BIN := .venv/bin
APT = sh -c 'if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$@" >/dev/null; \
	else echo "missing on this machine: install $$*, then try again" >&2; exit 1; fi' apt

.PHONY: help setup demo test test-long tools lint bench clean

help:
	@echo "make setup         the environment in .venv, with all that development needs"
	@echo "make demo          a tree of seven nodes, shown; it stays up until Ctrl-C (ONCE=1: it ends by itself)"
	@echo "make test          lint, types and every test but the longest"
	@echo "make test-long     those: minutes in a real kernel with Docker inside"
	@echo "make lint          ruff and mypy"
	@echo "make bench         the benchmarks, next to other systems: installs those and takes long"
	@echo "make pins          the wheels of a node, in the versions of .venv"
	@echo "make clean         remove what was made"

setup: .venv/ready

.venv/ready: setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(APT) python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup
	@bin/treescale demo $(if $(ONCE),--once)

test: lint tools
	$(BIN)/pytest -m 'not long'

test-long: setup tools
	$(BIN)/pytest -m long -o faulthandler_timeout=1500  # some of these are a whole life of a tree

tools:
	@command -v npm >/dev/null || $(APT) nodejs npm  # for the client in JavaScript
	@PATH=$$PATH:/usr/sbin:/sbin which linux.uml modprobe ip ipvsadm iptables-legacy nft dockerd busybox openssl \
		mmdebstrap ssh-agent chromium >/dev/null || \
		$(APT) user-mode-linux kmod iproute2 ipvsadm iptables nftables docker.io busybox-static openssl \
		mmdebstrap openssh-client chromium

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup
	bench/setup
	bench/run all

.PHONY: pins
pins: setup
	$(BIN)/python tools/pin.py

supervisord.conf.example: tsbus/supervision/conf.py
	$(BIN)/python -c 'from tsbus.supervision.conf import example; print(example(), end="")' > $@

clean:
	rm -rf .venv build *.egg-info examples/node/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
