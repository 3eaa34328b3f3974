# Fresh Debian 12 or 13 with python3, make, git, and root or sudo is enough: everything else is installed here.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= /usr/bin/python3
SALT ?= 3008
SUITE ?= trixie
UV := .venv/uv/bin/uv
PY := .venv/$(SALT)/bin/python
VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' _modules/kgraft.py)
# tests at a time: many wait, so two more than there are processors
JOBS ?= $(shell expr $$(nproc) + 2)
SALT_3006 := $(shell $(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 12) and print(".venv/3006/.test")')
# the tests' Salt writes no bytecode itself, and without any each call of it takes three times as long
export UV_COMPILE_BYTECODE := 1
MINION_FILES := $(wildcard _modules _states _beacons _runners formula/*/*.sls) saltext

# $(call step,NAME,COMMANDS): says what runs and how long it took; .ci/run reads $STAGE_TIMES
define step
@printf '== %s\n' '$(1)'; begin=$$SECONDS; ( set -e; $(2) ); code=$$?; \
took=$$((SECONDS - begin)); printf '== %s: %s, %s s\n' '$(1)' "$$([ $$code = 0 ] && echo ok || echo "FAILED ($$code)")" $$took; \
[ -z "$$STAGE_TIMES" ] || printf '%s\t%s\t%s\n' '$(1)' $$code $$took >> "$$STAGE_TIMES"; exit $$code
endef

# rpm, zypper, PostgreSQL, virtual machines and other users' processes want root; an ordinary user gets it by sudo. No ' in it:
# it is used between two.
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo env $$(env | grep -E "^(CI|DETAILS|KERNELS|KGRAFT_SOAK|PYTEST_ADDOPTS|PYTHON[A-Z]*)="))

# where the tests make their hundred thousand small files: in memory, if there is room for half a gigabyte
TEMP ?= $(shell ! grep -q ' /dev/shm .*noexec' /proc/mounts && [ $$(df --output=avail /dev/shm | tail -n 1) -gt 500000 ] && echo /dev/shm || echo /tmp)

# $(call pytest,SALT,ARGUMENTS): in a temporary directory with a short name, as unix sockets need, and removed after
pytest = tmp=$$(mktemp -d $(TEMP)/kg.XXXX); trap '$(ROOT) rm -rf "$$tmp"' EXIT; $(ROOT) env TMPDIR=$$tmp .venv/$(1)/bin/python -m pytest $(2)

.PHONY: help setup test test-unit test-functional test-integration test-all test-outside test-3006 test-kernel soak demo picture bundle rpm release-check try-fresh bench docs lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/3008/.dev .venv/3008/.outside $(SALT_3006) .venv/debian .venv/browser  ## install all that tests, lint and docs need

# ---- what is installed, each step once

.venv/base:
	$(call step,Debian packages to begin with,.ci/debian python3-venv ca-certificates)
	@mkdir -p .venv && touch $@

.venv/compiler: .venv/base
	$(call step,a compiler for Python packages,.ci/debian python3-dev gcc libc6-dev)
	@touch $@

.venv/debian: requirements/debian.txt .venv/base
	$(call step,Debian packages for the tests,.ci/debian $$(sed 's/#.*//' requirements/debian.txt))
	@touch $@

.venv/packaging: .venv/base
	$(call step,Debian packages for the demonstration,.ci/debian busybox-static zypper rpm createrepo-c)
	@touch $@

.venv/browser: .venv/base
	$(call step,a browser,.ci/debian chromium fonts-dejavu-core)
	@touch $@

.venv/uv/.done: .venv/base
	$(call step,uv,$(PYTHON) -m venv .venv/uv && .venv/uv/bin/pip install --quiet --disable-pip-version-check uv)
	@touch $@

# without timelib, which reads dates for users and would be the only one to want a compiler; .test adds it
.venv/%/.salt: .venv/uv/.done
	$(call step,Salt $*,[ -x .venv/$*/bin/python ] || $(UV) venv --quiet --python $(PYTHON) .venv/$*; echo 'timelib; python_version < "3"' | $(UV) pip install --quiet --python .venv/$*/bin/python --override /dev/stdin 'salt==$*.*')
	@touch $@

.venv/%/.test: .venv/%/.salt .venv/compiler requirements/test.txt
	$(call step,test tools for Salt $*,$(UV) pip install --quiet --python .venv/$*/bin/python 'salt==$*.*' -r requirements/test.txt)
	@touch $@

.venv/%/.dev: .venv/%/.test requirements/docs.txt requirements/lint.txt
	$(call step,lint and docs tools,$(UV) pip install --quiet --python .venv/$*/bin/python 'salt==$*.*' -r requirements/docs.txt -r requirements/lint.txt)
	@touch $@

.venv/%/.outside: .venv/%/.test requirements/outside.txt
	$(call step,what drives a browser,$(UV) pip install --quiet --python .venv/$*/bin/python 'salt==$*.*' -r requirements/outside.txt)
	@touch $@

.PRECIOUS: .venv/%/.salt .venv/%/.test .venv/%/.dev .venv/%/.outside

# ---- tests

test: test-unit  ## all that a change can break, on Salt 3008: unit, functional, integration
	$(call step,functional and integration tests,$(call pytest,3008,-n $(JOBS) tests/functional tests/integration))

test-unit test-functional test-integration: test-%: .venv/3008/.test .venv/debian
	$(call step,$* tests,$(call pytest,3008,-n $(JOBS) tests/$*))

test-all: test test-outside test-3006 test-kernel  ## these, what other programs make of our files, Salt 3006, and real kernels

test-outside: .venv/3008/.outside .venv/debian .venv/browser  ## by other programs: metrics in Prometheus, the page in Chromium and nginx
	$(call step,tests with other programs,left=; [ -x /usr/bin/chromium ] || { echo 'the page is not looked at: there is no /usr/bin/chromium'; [ -z "$$CI" ]; left=--ignore=tests/outside/test_page.py; }; $(call pytest,3008,tests/outside $$left))

test-3006: $(SALT_3006) .venv/debian  ## functional tests and some of integration on Salt 3006, where Python is 3.10 or 3.11
ifdef SALT_3006
	$(call step,functional tests on Salt 3006,$(call pytest,3006,-n $(JOBS) tests/functional))
	$(call step,integration tests on Salt 3006,$(call pytest,3006,-n $(JOBS) tests/integration -m smoke))
else
	$(call step,Salt 3006,echo 'not tested: it needs Python 3.10 or 3.11 and $(PYTHON) is another'; [ -z "$$CI" ])
endif

soak: .venv/3008/.test .venv/debian  ## the tests that have rounds, with all of them
	$(call step,soak,export KGRAFT_SOAK=1; $(call pytest,3008,-n $(JOBS) -m soak tests/unit tests/functional))

test-kernel: .venv/debian  ## real kernels in virtual machines, those that apt has; `make -j2` runs two at a time
	+@series=$$($(PYTHON) -m tests.kernel.debian) && $(MAKE) $$(printf 'test-kernel-%s ' $$series)

test-kernel-%: TEMP := /tmp
test-kernel-%: .venv/3008/.test .venv/debian
	$(call step,kernel tests on $*,export KERNELS=$*; $(call pytest,3008,tests/kernel))

# ---- the rest

demo:  ## from a machine without a live patch to a settled one, told as a story; DETAILS=1: with whole answers
	+@$(MAKE) -s $(if $(filter -j%,$(MAKEFLAGS)),,-j2) .venv/3008/.salt .venv/packaging
	$(call step,demo,$(ROOT) $(PY) -m lab.demo)

picture: .venv/3008/.outside .venv/browser  ## the page of the fleet as README shows it: docs/page.png
	@$(PY) -m lab.picture

bundle:  ## dist/saltext-kgraft-VERSION.tar.gz of the last commit, to unpack on a server that is a container
	$(call step,bundle,mkdir -p dist; tree=$$(mktemp -d); trap "rm -rf $$tree" EXIT; \
	place() { git archive --prefix="$$1/" "HEAD:$$2" $${@:3} | tar -x -C $$tree; }; \
	place srv/salt "" _modules _states _beacons _runners; \
	place srv/salt formula kgraft; \
	place srv/salt/kgraft examples/states/kgraft absent.sls; \
	place srv/salt/kgraft examples/orchestrate rollout.sls; \
	place srv/formula_metadata/kgraft formula form.yml metadata.yml pillar.example; \
	place srv/formula_metadata/kgraft "" LICENSE; \
	place etc/salt/master.d packaging kgraft.conf; \
	cd $$tree; find * -type f | sort | tar -c --owner=0 --group=0 --mode=0644 -T - | gzip -n > $(CURDIR)/dist/saltext-kgraft-$(VERSION).tar.gz)

# the changelog goes into the spec as the Open Build Service puts it there
rpm: .venv/3008/.test .venv/debian  ## dist/rpm/*.rpm of the last commit, by rpmbuild and rpmlint
	$(call step,rpm,rm -rf dist/rpm; mkdir -p dist/rpm; spec=dist/rpm/saltext-kgraft.spec; \
	git archive --prefix=saltext-kgraft-$(VERSION)/ -o dist/rpm/saltext-kgraft-$(VERSION).tar.gz HEAD; \
	git show HEAD:packaging/saltext-kgraft.spec > $$spec; git show HEAD:packaging/saltext-kgraft.changes | sed -E \
	"/^---/d; s/^(\w+ \w+ +[0-9]+) [0-9:]+ UTC ([0-9]+) - /* \1 \2 /; s/%/%%/g" >> $$spec; \
	rpmbuild -ba --nodeps --define "_topdir $(CURDIR)/dist/rpm/build" --define "_sourcedir $(CURDIR)/dist/rpm" \
	--define "_rpmdir $(CURDIR)/dist/rpm" --define "_srcrpmdir $(CURDIR)/dist/rpm" \
	--define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" --define "__brp_compress %{nil}" \
	--define "kgraft_python $(abspath $(PY))" $(RPMBUILD) $$spec \
	> dist/rpm/build.log 2>&1 || { tail -n 40 dist/rpm/build.log; exit 1; }; \
	rpmlint --strict --config packaging/rpmlint.toml dist/rpm/*.rpm $$spec)

release-check:  ## what is missing for a release, a line for each thing
	@$(PYTHON) packaging/release.py check

try-fresh:  ## a new Debian machine, by debootstrap: SUITE=bookworm or trixie, TARGETS="demo test", WHO="root user"
	@WHO="$(WHO)" .ci/try-fresh $(SUITE) $(TARGETS)

bench: .venv/3008/.outside .venv/browser  ## against the shell way and bare C
	@$(PY) -m benchmarks

docs: .venv/3008/.dev  ## the manual, in docs/_build/html
	$(call step,docs,$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html)

lint: .venv/3008/.dev  ## ruff, and Python 3.6 syntax in what minions load
	$(call step,lint,$(PY) -m ruff check .; $(PY) -m ruff format --check .; .venv/3008/bin/vermin --quiet --no-tips -t=3.6- --violations $(MINION_FILES))

format: .venv/3008/.dev  ## put the files into ruff's form
	@$(PY) -m ruff check --fix .; $(PY) -m ruff format .

clean:  ## remove what was installed and built here
	$(ROOT) rm -rf .venv .cache build dist docs/_build .pytest_cache .hypothesis .ruff_cache *.egg-info
	$(ROOT) find . -name __pycache__ -prune -exec rm -rf {} +
