# One word each; every one may be run again, and what is done already costs nothing.
#
#   make example   set up what is needed, then run examples/sandbox.py on this machine
#   make test      set up what tests need, then run all of them (linters too)
#   make test-security   the attacks, with a table of the rows that passed
#   make test-machines   a smoke suite in machines with other kernels, as root and as a plain user; VM_RUN boots them (.ci/machines)
#   make test-integrations   adapters of frameworks, and their Modal modes behind `openmodal serve`, with the newest releases
#   make lint      the linters only          make bench   the benchmarks
#   make docs      the documents as a web site, in site/
#   make wheel     one wheel for both CPUs   make clean   forget everything that was built
#   make vendor    fetch the web page's libraries from npm, as src/openmodal/web/vendor/vendor.toml says

.PHONY: help example test test-security test-machines test-integrations lint bench docs wheel vendor native native-test clean
.DELETE_ON_ERROR:

# Tests start hundreds of Pythons, which shall not compile the same files again and again.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
PIP := $(PYTHON_IN) -m pip install -qq
STAMPS := $(VENV)/.stamps
# Tests mostly wait: for processes, deadlines, daemons. More workers than CPUs, but few enough that none starves.
PYTEST_ARGS ?= -n 3

# The image base is made of Debian packages, and the network of sandboxes of iptables rules; a plain user needs ids for the one, and a helper
# for the other.
DEBIAN := mmdebstrap $(if $(filter 0,$(shell id -u)),iptables,passt uidmap)
DEBIAN_TEST := $(DEBIAN) bindfs btrfs-progs busybox-static clang curl docker-registry docker.io git iproute2 libclang-rt-dev \
	musl-tools nftables openssl passt podman slirp4netns strace stress-ng uidmap util-linux xfsprogs
# Debian 12's own is too old for the options that we give it.
BACKPORTS_TEST := runsc

help:
	@sed -n 's/^#   //p' Makefile

# A plain user's sandboxes need control groups of that user's own; systemd hands them out, where it runs.
DELEGATED := systemd-run --user --scope --quiet --property=Delegate=yes

example: $(STAMPS)/installed native
	@.ci/apt $(DEBIAN)
	@set --; [ "$$(id -u)" = 0 ] || ! $(DELEGATED) true 2>/dev/null || set -- $(DELEGATED); set -x; \
		"$$@" $(VENV)/bin/openmodal --local run examples/sandbox.py

test: $(STAMPS)/test $(STAMPS)/clients $(STAMPS)/browser $(STAMPS)/lint native
	$(PYTHON_IN) -m pytest $(PYTEST_ARGS)

# The attacks, and the tests of rows that are in the folders of what they are about.
ATTACKED := tests/security tests/embedded/test_network.py tests/build/test_unpack.py tests/build/test_registry.py \
	tests/build/test_dockerfile.py

test-security: $(STAMPS)/test native
	$(PYTHON_IN) -m pytest -p tests.rows $(ATTACKED) $(PYTEST_ARGS)

# Kernels as users have them; what boots the machines brings its own needs along.
KERNELS ?= 6.1 6.12

test-machines:
	@.ci/machines $(KERNELS)

# Frameworks contradict each other, so each has an environment of its own; a new one has the newest release.
FRAMEWORKS ?= inspect swe_rex harbor deepagents mini_swe_agent nemo_gym openai_agents openenv openhands smolagents \
	verifiers
PACKAGES_inspect := inspect_ai
PACKAGES_swe_rex := 'swe-rex[modal]'
PACKAGES_harbor := 'harbor[modal]'
NEEDS_harbor := 3.12
PACKAGES_deepagents := deepagents langchain-tests
# Of a plugin that its tests bring along.
PYTEST_deepagents := -o asyncio_default_fixture_loop_scope=function -o asyncio_mode=auto
PACKAGES_mini_swe_agent := mini-swe-agent
PACKAGES_nemo_gym := nemo-gym
NEEDS_nemo_gym := 3.12
PACKAGES_openai_agents := openai-agents
PACKAGES_openenv := openenv-core
PACKAGES_openhands := openhands-sdk
NEEDS_openhands := 3.12
PACKAGES_smolagents := smolagents
PACKAGES_verifiers := 'verifiers[modal]'

test-integrations:
	@.ci/integrations $(foreach name,$(FRAMEWORKS),$(name):$(or $(NEEDS_$(name)),3.11))

# An adapter is a file, or a folder.
ADAPTER = $(wildcard src/openmodal/integrations/$*.py src/openmodal/integrations/$*)

test-integration-%: .venv-%/.installed $(STAMPS)/test $(STAMPS)/lint native
	$(if $(ADAPTER),$(PYTHON_IN) -m mypy --python-executable .venv-$*/bin/python $(ADAPTER))
	.venv-$*/bin/python -m pytest $(PYTEST_ARGS) $(PYTEST_$*) tests/integrations/test_$**.py

lint: $(STAMPS)/lint
	$(PYTHON_IN) -m ruff check
	$(PYTHON_IN) -m ruff format --check
	$(PYTHON_IN) -m mypy
	$(PYTHON_IN) -m basedpyright --pythonpath $(PYTHON_IN)

bench: $(STAMPS)/test native
	$(PYTHON_IN) -m benchmarks $(BENCH_ARGS)
	@[ -z "$$KUBECONFIG" ] || $(PYTHON_IN) -m benchmarks --kubernetes --rounds 10

# The pages of docs/reference are made of the docstrings; a test tells if they are old.
docs: $(STAMPS)/docs
	$(PYTHON_IN) -m tests.docs.reference
	$(PYTHON_IN) -m mkdocs build --quiet

# The native program, when its sources changed; the same call that the build hook makes.
native: $(STAMPS)/installed
	@$(PYTHON_IN) native/build.py

# The tests of its sources; `make test` runs them beside others.
native-test: $(STAMPS)/test native
	$(MAKE) --no-print-directory -C native test analyze fuzz PYTHON=$(abspath $(PYTHON_IN))

# Made in a folder of its own, so that a development build is neither shipped nor replaced.
wheel: $(STAMPS)/release
	$(PYTHON_IN) .ci/wheel.py dist

vendor: | $(PYTHON_IN)
	$(PYTHON_IN) .ci/vendor.py src/openmodal/web/vendor

clean:
	rm -rf $(VENV) .venv-* dist site native/build src/openmodal/_native .mypy_cache .pytest_cache .ruff_cache .hypothesis

# ---------------------------------------------------------------------------------------------------- set-up

$(PYTHON_IN):
	@.ci/venv $(VENV)

$(STAMPS)/installed: pyproject.toml hatch_build.py | $(PYTHON_IN)
	@mkdir -p $(STAMPS)
	$(PIP) --editable .
	@touch $@

# `--group` came with pip 25.1.
$(STAMPS)/pip: | $(PYTHON_IN)
	@mkdir -p $(STAMPS)
	$(PIP) 'pip>=25.1'
	@touch $@

$(STAMPS)/test: $(STAMPS)/installed $(STAMPS)/pip Makefile
	@.ci/apt $(DEBIAN_TEST)
	@.ci/backports $(BACKPORTS_TEST)
	$(PIP) --editable '.[fast,gke,mcp,serve]' --group test --group docs
	@touch $@

# Versions of the modal client that people have, beside the one of the extra `serve`.
CLIENTS := 1.4 1.5

$(STAMPS)/clients: $(STAMPS)/test
	@for version in $(CLIENTS); do $(PIP) --upgrade --target $(VENV)/.clients/$$version "modal==$$version.*" || exit 1; done
	@touch $@

# The browser that the tests of the web page drive is Debian's; the driver downloads none.
$(STAMPS)/browser: $(STAMPS)/test
	@.ci/apt chromium
	$(PIP) --group browser
	@touch $@

$(STAMPS)/lint: $(STAMPS)/installed $(STAMPS)/pip
	$(PIP) --editable '.[gke,mcp,serve]' --group lint
	@touch $@

$(STAMPS)/docs: $(STAMPS)/installed $(STAMPS)/pip
	$(PIP) --group docs
	@touch $@

.PRECIOUS: .venv-%/.installed
.venv-%/.installed: pyproject.toml
	@.ci/venv .venv-$* $(NEEDS_$*)
	.venv-$*/bin/python -m pip install -qq 'pip>=25.1'
	.venv-$*/bin/python -m pip install -qq --editable . --group test $(PACKAGES_$*)
	@touch $@

$(STAMPS)/release: pyproject.toml $(STAMPS)/pip
	$(PIP) --group release
	@touch $@
