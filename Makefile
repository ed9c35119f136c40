# The commands of the project. `make` alone lists them.

VENV := .venv
PACKAGING := setup.py pyproject.toml elemta/__init__.py .ci/venv
PYTEST := bin/python -m pytest
# Half of the time is spent waiting, so a process more than two cores. ARGS="-n 0 …" is one after the other.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
DEV := etc/elemta-dev.toml
# What older Twisteds could break: some packages use nothing of Twisted but Deferreds, and kills, floods and
# outages are about our own order of things.
NEWEST_ONLY := smtp message config house monitoring multinode compose adoption durability mailout cluster \
	policies spool limits history ctl bench policy/test_example_package.py \
	$(addprefix delivery/test_,$(addsuffix .py,destinations every_part_ends faults_before_the_record \
	flood_of_dead_domains large_queue memory_of_destinations outage_of_ours wake_heap)) \
	$(addprefix daemon/test_,$(addsuffix .py,clock_steps destinations explain find pushed_limits \
	questions recipes renewal setups simulated_runtime start trace))
OLDER := -o filterwarnings=default -m 'not campaign and not servers' $(addprefix --ignore=tests/,$(NEWEST_ONLY))

.DEFAULT_GOAL := help
.PHONY: help run test check format generate test-twisted-22.4 test-twisted-24.11 bench bench-accept bench-relay bench-limits bench-policy-service bench-fleet bench-policies bench-window bench-retries campaign multinode api-test console-test screenshots interop house deb deb-test compose-test clean

help: ## this list
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z][a-z0-9.-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

run: $(VENV)/.run ## start Elemta on 127.0.0.1:2525 with everything it writes below ./var
	@mkdir -p var
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' $(DEV)
	@exec $(VENV)/bin/twistd -n --pidfile= elemta --config $(DEV)

test: $(VENV)/.test ## run the tests with the newest Twisted; a warning is an error
	$(VENV)/bin/python -W error -m pytest $(PARALLEL) $(ARGS)

check: $(VENV)/.check ## ruff, mypy --strict, the floors, generated files not stale
	@.ci/check $(VENV)

format: $(VENV)/.check ## let ruff put the code in order
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

generate: $(VENV)/.run ## write again what is generated: etc/elemta.toml, parts of docs/, manual pages
	$(VENV)/bin/python -m elemta.config write
	$(VENV)/bin/python docs/generate_metrics.py
	$(VENV)/bin/python docs/generate_logging.py
	$(VENV)/bin/python docs/generate_dsn.py
	$(VENV)/bin/python docs/generate_leniency.py
	$(VENV)/bin/python docs/generate_man.py
	$(VENV)/bin/python docs/generate_rfc.py
	$(VENV)/bin/python -B monitoring/grafana/generate.py

test-twisted-22.4: .venv-22.4/.test ## the tests with the Twisted of Debian 12 (needs Python 3.11)
	.venv-22.4/$(PYTEST) $(PARALLEL) $(OLDER) $(ARGS)

test-twisted-24.11: .venv-24.11/.test ## the tests with the Twisted of Debian 13
	.venv-24.11/$(PYTEST) $(PARALLEL) $(OLDER) $(ARGS)

bench: $(VENV)/.test .venv-bench/.done ## all benchmarks of docs/performance.md in one run (up to an hour; ARGS=--quick: ten minutes); as root
	$(VENV)/bin/python bench/suite $(ARGS)

bench-accept: $(VENV)/.test ## messages a second, beside Postfix on the same disk (needs postfix)
	$(VENV)/bin/python bench/accept $(ARGS)

bench-relay: $(VENV)/.test ## the same for messages that go in and out again
	$(VENV)/bin/python bench/relay $(ARGS)

bench-limits: $(VENV)/.test ## decisions a second through Valkey, their CPU and latency, and memory
	$(VENV)/bin/python bench/limits $(ARGS)

bench-policy-service: $(VENV)/.test ## decisions a second by Postfix's policy protocol, beside other daemons; as root
	PATH="$$PATH:/usr/sbin" $(VENV)/bin/python bench/policy_service $(ARGS)

bench-fleet: $(VENV)/.test ## messages a second through 1, 2, 3 nodes on one Valkey, and larger fleets simulated
	$(VENV)/bin/python bench/fleet $(ARGS)

bench-policies: $(VENV)/.test ## the CPU of each bundled policy and of the ready set-ups for a message; as root
	$(VENV)/bin/python bench/policies $(ARGS)

bench-window: $(VENV)/.test ## how far an adversary gets past each way to limit a rate; octets of a key
	$(VENV)/bin/python bench/window_accuracy $(ARGS)

bench-retries: $(VENV)/.test ## clients that a limit refused together: when each comes again, simulated
	$(VENV)/bin/python bench/retries $(ARGS)

campaign: $(VENV)/.test ## the long tests: kill -9 under load, outages of Valkey, and similar ones
	$(VENV)/$(PYTEST) -m campaign --timeout=0 -s $(ARGS)

multinode: $(VENV)/.test ## three nodes behind HAProxy and nginx, and three Postfixes, in namespaces, while parts fail; as root
	@tests/multinode/run $(VENV)/bin/python $(ARGS)

api-test: $(VENV)/.test .venv-schemathesis/bin/schemathesis ## asks a daemon all that its openapi.json describes (schemathesis)
	@PYTHONPATH=. $(VENV)/bin/python tests/console/run_schemathesis.py $(CURDIR)/.venv-schemathesis/bin/schemathesis $(ARGS)

console-test: $(VENV)/.test .venv-axe/axe.min.js ## the console in Chromium, with axe-core (needs chromium, chromedriver, npm)
	@chromium --version && chromedriver --version
	ELEMTA_AXE=$(CURDIR)/.venv-axe/axe.min.js $(VENV)/$(PYTEST) tests/console -n 0 $(ARGS)

screenshots: $(VENV)/.test .venv-pictures/bin/python ## takes the pictures of docs/console.md again (needs chromium, chromedriver)
	PYTHONPATH=. $(VENV)/bin/python tests/console/take_screenshots.py docs/screenshots
	@.venv-pictures/bin/python .ci/shrink-png docs/screenshots/*.png

.venv-axe/axe.min.js:
	@.ci/axe $@

.venv-pictures/bin/python:
	@.ci/venv .venv-pictures 'pillow>=10'

.venv-schemathesis/bin/schemathesis:
	@.ci/venv .venv-schemathesis 'schemathesis>=4.32'

interop: $(VENV)/.test ## real senders and next hops, from Debian, npm and PyPI, and a table of what works; as root
	@tests/interop/run $(VENV)/bin/python $(ARGS)

house: $(VENV)/.test ## figures about the code: sizes, and the frames on the way of a message and of a limit
	@$(VENV)/bin/python .ci/house $(ARGS)

deb: ## the Debian packages, in dist/deb; wants debhelper and lintian
	@packaging/deb $(ARGS)

deb-test: ## boots a Debian with them and tries everything; as root (SUITES="bookworm trixie")
	@packaging/deb-test $(SUITES)

compose-test: $(VENV)/.test ## the image and the compose files, for real, with podman; as root
	@$(VENV)/bin/python tests/compose/run $(ARGS)

clean: ## remove the virtual environments and caches; ./var, which holds mail, stays
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find elemta tests twisted docs bench -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all work with the newest of everything; the stamps say what is in it.
$(VENV)/.run: $(PACKAGING)
	@.ci/venv $(VENV) -e .
	@touch $@

$(VENV)/.test: $(PACKAGING)
	@.ci/venv $(VENV) -e '.[test]'
	@.ci/suites $(VENV)
	@touch $@ $(VENV)/.run

$(VENV)/.check: $(PACKAGING)
	@.ci/venv $(VENV) -e '.[test,check]'
	@.ci/suites $(VENV)
	@touch $@ $(VENV)/.run $(VENV)/.test

# What the benchmarks alone need.
.venv-bench/.done:
	@.ci/venv .venv-bench 'aiosmtpd>=1.4.6'
	@if command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --omit=dev --prefix .venv-bench/npm Haraka || \
			echo "npm could not bring Haraka: it is left out"; \
	else echo "there is no npm: Haraka is left out"; fi
	@touch $@

# Twisted 22.4 needs the standard library's cgi module, which Python 3.13 no longer has.
.venv-22.4/.test: $(PACKAGING) .ci/constraints-22.4.txt
	@.ci/venv .venv-22.4 --python 3.11 -c .ci/constraints-22.4.txt -e '.[test]'
	@touch $@

.venv-24.11/.test: $(PACKAGING) .ci/constraints-24.11.txt
	@.ci/venv .venv-24.11 -c .ci/constraints-24.11.txt -e '.[test]'
	@touch $@
