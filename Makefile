# cri-shim. `make` alone explains the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
# The pinned Node.js. Its own folder, since npm 9 makes no link in .bin for a program that two optional packages have.
NODE_DIR := $(CURDIR)/node_modules/node-linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)/bin
export PATH := $(NODE_DIR):$(CURDIR)/node_modules/.bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

PREFIX ?= /usr/local
CONTAINERD ?=
CRITEST ?= critest
ARGS ?=

.PHONY: help setup setup-node run test test-unit test-integration test-systemd critest critest-control bench lint install uninstall

help: ## This text
	@printf 'make TARGET\n\n'
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 20
	@printf '\nSettings: CONTAINERD=/run/containerd/containerd.sock (run: the machine'"'"'s containerd, not a private one),\nCRITEST=path, ARGS="--all" (critest), PREFIX=%s DESTDIR= (install)\n' '$(PREFIX)'

setup: ## Install what is missing: Debian packages and npm's modules
	@scripts/setup.sh

setup-node:
	@scripts/setup.sh node

run: setup ## Run a pod with two containers through cri-shim and look at it; Ctrl-C cleans up
	@CONTAINERD='$(CONTAINERD)' node scripts/run-demo.ts

test: lint test-unit test-integration test-systemd ## Everything that has to hold for a change

test-unit: setup ## Tests of each part, with the real kernel, CNI plugins and registry
	@node --test 'src/**/*.test.ts' 'test/images/**/*.test.ts' 'test/fixtures/**/*.test.ts' 'test/critest/**/*.test.ts' 'bench/**/*.test.ts'

test-integration: setup ## Tests of the whole service on a private containerd
	@if find test/integration -name '*.test.ts' 2>/dev/null | grep -q .; then node --test --test-concurrency=1 'test/integration/**/*.test.ts'; fi

test-systemd: setup-node ## Tests of the unit and its installation on a Debian that is booted for it
	@scripts/setup.sh systemd
	@node --test 'test/systemd/**/*.test.ts'

critest: setup ## Kubernetes' conformance specs against cri-shim (CRITEST=path)
	@CRITEST='$(CRITEST)' node test/critest/run.ts $(ARGS)

critest-control: setup ## The same specs against containerd's own CRI plugin
	@CRITEST='$(CRITEST)' node test/critest/run.ts --control $(ARGS)

bench: setup ## cri-shim and containerd's own CRI plugin side by side
	@node bench/run.ts $(ARGS)

lint: setup-node ## Types, lint, import rules, generated code
	@tsc
	@npm run --silent lint

install: setup-node ## Install to PREFIX, with systemd unit and configuration (DESTDIR respected)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install.sh

uninstall: ## Remove what install put in place, except the configuration
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install.sh --uninstall
