# mfalcon, from a fresh clone: `make demo` to see it work, `make test` to check it. `make` alone lists the targets.
#
# PYTHON       interpreter that .venv is made with, 3.11 to 3.13 (make PYTHON=python3.12 test)
# TORCH        version of torch to install; any of the range in pyproject.toml
# TORCH_INDEX  package index to take torch from, if not pip's own. Where pip's own has only the CUDA build (gigabytes),
#              PyTorch's index of CPU wheels saves most of the download.
# TRITONS      versions of Triton that `make triton` holds the kernels to; each has its limits in kernels/gpu
# SCENARIO     what `make loadtest` plays, a minute each
# RELEASE      yes: what `make proto` writes is what later changes of the contract may not break
# FUZZ         seconds that `make fuzz` spends on each surface
# TESTS        those that `make standstill` runs, all if not given
# SANITIZE     what `make sanitize` looks for, as in the compiler's -fsanitize

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
TRITONS ?= 3.6.0 3.7.1
RELEASE ?=
TESTS ?=
SANITIZE ?= address,undefined

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check thorough standstill kernel sanitize races serve quality bench triton gpu bench-gpu \
  check-gpu rehearse-gpu gpu-wheels balance-test kubernetes-test balanced chaos loadtest soak fuzz fuzz-http \
  image-test compose-test browser-test lock proto metrics docs client-wheel clean

BIN := .venv/bin
KERNEL_STAMP := kernels/cpu/build/.compiled
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

# A quarter of the time of the tests is waiting, so there is a worker more than cores; it takes 1.5 GB.
IN_PARALLEL := -n $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 3 ? cores + 1 : 4))) --dist worksteal

# Types, and the Triton kernels for every architecture, held to their limits (all of them, minutes, where a kernel
# changed), on what the tests leave of the cores. There is no Triton but on Linux.
define beside
wrong=0; nice $(BIN)/mypy || wrong=1; \
	  if $(BIN)/python -c 'import triton' 2>/dev/null; then nice $(BIN)/python -m kernels.gpu.aot --changed || wrong=1; fi; \
	  exit $$wrong
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.installed-data ## train a small ranker on MovieLens-100K, serve it, rank with it
	$(BIN)/mfalcon demo

# The tests start hundreds of processes: each would compile our sources anew where bytecode is not kept.
test: .venv/.installed-test ## format check, lint, types, tests, every Triton kernel that changed compiled
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	mkdir -p build
	{ $(beside); } >build/beside.log 2>&1 & beside=$$!; failed=0; \
	  env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q $(IN_PARALLEL) || failed=1; \
	  wait $$beside || { cat build/beside.log; failed=1; }; exit $$failed

check: test ## the same as test

thorough: .venv/.installed-test ## the tests that take minutes, of what the others sample
	$(BIN)/python -m pytest -q -m thorough

kernel: .venv/.installed-test ## compile the fused CPU kernel, if there is a C++ compiler
	$(BIN)/python -m kernels.cpu.build_library

standstill: .venv/.installed-test ## the tests, or TESTS=tests/server, while their processes stand still for up to 2 s
	PYTHONPATH=tests/standstill $(BIN)/python -m pytest -q $(IN_PARALLEL) $(TESTS)

# The tests compile what is missing. Python is not instrumented, so both runtimes are loaded first; fresh memory is
# filled with 0xff, which is NaN.
sanitize: .venv/.installed-test ## run the fused kernel's tests under AddressSanitizer and UBSan (needs GCC)
	$(BIN)/python -m kernels.cpu.build_library --require --sanitize $(SANITIZE) --policy portable_bf16
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255 \
	  MFALCON_SANITIZE=$(SANITIZE) $(BIN)/python -m pytest -q tests/kernels/test_fused.py tests/kernels/test_fused_linear.py \
	    tests/kernels/test_shared_table.py tests/kernels/test_text_ids.py tests/kernels/test_reach.py

# Threads of Python that call the kernel at once, each on one core: OpenMP's own barriers would be false alarms.
races: .venv/.installed-test ## run the fused kernel's tests of several threads under ThreadSanitizer (needs GCC)
	$(BIN)/python -m kernels.cpu.build_library --require --sanitize thread --fit
	LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" TSAN_OPTIONS=halt_on_error=1:exitcode=66 OMP_NUM_THREADS=1 \
	  MFALCON_SANITIZE=thread $(BIN)/python -m pytest -q tests/kernels/test_fused.py -k several_threads

serve: .venv/.installed-data ## serve the checkpoint that the demo trained
	$(BIN)/mfalcon serve --checkpoint checkpoints/ml-100k-dfgr --console-users 450

quality: .venv/.installed-quality ## ranking quality on MovieLens-100K
	$(BIN)/mfalcon quality

bench: .venv/.installed-test ## time scoring, appending, states in Redis and faults
	$(BIN)/mfalcon bench score
	$(BIN)/mfalcon bench append
	$(BIN)/mfalcon bench state
	$(BIN)/mfalcon bench faults --only 'under load'

gpu: .venv/.installed-test .venv/.installed-gpu ## tests on this machine's CUDA device
	$(BIN)/python -m pytest -q -m gpu

bench-gpu: .venv/.installed-gpu ## seven minutes on a CUDA device: right, then stacks, kernels, block sizes, a profile
	$(BIN)/python -m loadtest.bench.gpu_all --out build/gpu

check-gpu: .venv/.installed-test .venv/.installed-gpu ## four more: tests and laws there, the engine, compute-sanitizer
	$(BIN)/python -m loadtest.bench.gpu_checks --out build/gpu-checks

rehearse-gpu: .venv/.installed-test ## both without a device: every cell reached, every launch checked
	$(BIN)/python -m loadtest.bench.gpu_all --out build/gpu-rehearsal --rehearse --seconds 3600
	$(BIN)/python -m loadtest.bench.gpu_checks --out build/gpu-checks-rehearsal --rehearse --seconds 3600

# For a machine that has torch, triton and numpy, but no package index: 8 MB, and 15 for what goes through gRPC.
WHEELS := build/wheels
gpu-wheels: .venv/bin/python ## fetch what such a machine is brought
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 \
	  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d $(WHEELS) \
	  -r loadtest/bench/gpu_wheels.txt -r loadtest/bench/gpu_wheels_grpc.txt

# Each version in an environment of its own, which has Triton and takes all else from .venv.
triton: .venv/.installed-test ## compile and interpret the Triton kernels with each version of Triton
	for version in $(TRITONS); do \
	  own=build/triton-$$version; packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  test -x $$own/bin/python || $(BIN)/python -m venv $$own; \
	  $$own/bin/python -m pip install --disable-pip-version-check --quiet --no-deps "triton==$$version"; \
	  $(BIN)/python -c "$$packages" >"$$($$own/bin/python -c "$$packages")/zz-venv.pth"; \
	  $$own/bin/python -m kernels.gpu.aot; \
	  $$own/bin/python -m pytest -q tests/kernels/test_aot.py tests/kernels/test_gpu_*.py tests/kernels/test_launches.py \
	    tests/backends/test_triton.py; \
	done

balance-test: .venv/.installed-test ## the configurations of Envoy, nginx and HAProxy, with the real ones
	$(BIN)/python -m loadtest.balance.balancer
	$(BIN)/python -m pytest -q -m 'thorough or not thorough' tests/deploy/test_balancers.py

# The schemas and policies take 400 MB, so they get an environment of their own. Checkov's two: pull policies and digests
# are for who deploys to choose.
KUBERNETES ?= 1.34
kubernetes-test: .venv/.installed-test ## deploy/kubernetes: rendered, validated; alerts and scaling by a real Prometheus
	for program in kubectl promtool prometheus; do command -v $$program >/dev/null || { \
	  echo "$$program is not installed: Debian's packages are kubernetes-client and prometheus" >&2; exit 1; }; done
	own=build/kubernetes-tools; test -x $$own/bin/python || $(BIN)/python -m venv $$own; \
	  $$own/bin/python -m pip install --disable-pip-version-check --quiet 'checkov>=3.3,<3.4' 'kubernetes-validate>=1.37'
	$(BIN)/python -m tests.deploy.manifests
	build/kubernetes-tools/bin/kubernetes-validate --quiet --strict -k $(KUBERNETES) build/kubernetes/*.yaml \
	  deploy/kubernetes/checkpoints.yaml
	build/kubernetes-tools/bin/checkov --framework kubernetes -d build/kubernetes --compact --quiet \
	  --skip-download --skip-check CKV_K8S_15,CKV_K8S_43
	$(BIN)/python -m pytest -q -m 'thorough or not thorough' tests/deploy/test_kubernetes.py tests/deploy/test_prometheus.py \
	  tests/deploy/test_scaling.py tests/deploy/test_alerts.py

chaos: .venv/.installed-test ## replicas on one Redis, killed and frozen for five minutes, every answer checked
	$(BIN)/mfalcon chaos checkpoints/ml-100k-dfgr --rate 60 --fault-gap 6
	$(BIN)/python -m tests.kvcache.mutations --count 100000

# Surfaces one after the other; docs/security.md, "Fuzzing", says what they are and what was found.
FUZZ ?= 60
fuzz: .venv/.installed-fuzz ## look for inputs of any surface that end in more than a documented error, with atheris
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --seconds $(FUZZ)

# It brings a plugin for pytest, so it gets an environment of its own.
fuzz-http: .venv/.installed-test ## hold HTTP to its own OpenAPI description, with schemathesis
	test -x build/fuzz-http/bin/schemathesis || { $(BIN)/python -m venv build/fuzz-http && \
	  build/fuzz-http/bin/pip install --quiet 'schemathesis>=4.32,<5'; }
	$(BIN)/python -m tests.fuzz.openapi build/fuzz-http/bin/schemathesis --max-examples 300

balanced: .venv/.installed-test ## two replicas behind Envoy on one Redis: a user stays, and moves when the replica is killed
	$(BIN)/python -m loadtest.balance.pair

# docs/load.md lists them; of each a report of Locust and its figures are left in build/scenarios.
SCENARIO ?= mixed
loadtest: .venv/.installed-test ## play a Locust scenario on servers of its own: SCENARIO=steady, or all
	$(BIN)/python -m loadtest.scenarios.run $(SCENARIO)

# docs/load.md says how to read it.
soak: .venv/.installed-test ## load what `make serve` serves for half an hour: do memory, descriptors, threads grow?
	mkdir -p build
	$(BIN)/mfalcon loadtest --checkpoint checkpoints/ml-100k-dfgr --seconds 1800 --rate 20 --candidates 500 \
	  --beside name=cold,clients=1,pause-ms=1000,candidates=100,deadline-ms=10000,history=1024,cold-share=1 \
	  --beside name=large,rate=0.5,candidates=16384,deadline-ms=10000 \
	  --beside name=cancelled,rate=5,candidates=4096,deadline-ms=500,cancel-share=0.9 \
	  --watch 127.0.0.1:8080 --fail-on-slope \
	  --json-file build/soak.json --write build/soak.md --watch-plot build/soak.png

# As root, with Debian's buildah, podman, runc and debootstrap; minutes, and gigabytes in build/image until it ends.
image-test: .venv/.installed-test ## build the CPU image and hold it to its promises, in containers
	$(BIN)/python -m pytest -q -s -m image tests/image/test_image.py

compose-test: .venv/.installed-test ## run deploy/compose.yaml for real (also needs netavark, aardvark-dns, iptables)
	test -x build/compose/bin/podman-compose || { $(BIN)/python -m venv build/compose && \
	  build/compose/bin/pip install --quiet podman-compose==1.6.0; }
	PATH="$$PWD/build/compose/bin:$$PATH" $(BIN)/python -m pytest -q -s -m image tests/image/test_compose.py

# torch itself is pinned in files of its own, one for each of its builds; uv reads indices as pip does not, so name the
# one of CPU wheels by TORCH_INDEX, or a folder that holds the wheel by UV_FIND_LINKS.
UV_COMPILE = build/lock/bin/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock'
lock: .venv/bin/python ## write again which packages the images hold, with their hashes (deploy/image)
	test -x build/lock/bin/uv || { $(BIN)/python -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	echo '$(TORCH)+cpu' >build/lock/cpu.txt
	$(UV_COMPILE) pyproject.toml --extra trace --extra llm --extra jwt --constraint build/lock/cpu.txt --no-emit-package torch \
	  $(if $(TORCH_INDEX),--index-strategy unsafe-best-match --extra-index-url $(TORCH_INDEX)) \
	  -o deploy/image/requirements.txt
	echo '$(TORCH)' >build/lock/cuda.in
	env -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL $(UV_COMPILE) build/lock/cuda.in --constraint deploy/image/requirements.txt -o deploy/image/torch-cuda.txt
	echo cyclonedx-bom >build/lock/sbom.in
	$(UV_COMPILE) build/lock/sbom.in -o deploy/image/sbom.txt

# With Debian's chromium, or another one of that kind in PATH; half a minute.
browser-test: .venv/.installed-browser ## the console in a real browser: every view, axe, no other host, no error
	$(BIN)/python -m pytest -q -m browser tests/browser

proto: .venv/.installed-test ## regenerate the stubs of proto/ranking.proto and proto/inference.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	  --descriptor_set_out=proto/ranking.binpb proto/ranking.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. proto/inference.proto
	$(if $(filter yes,$(RELEASE)),$(BIN)/buf build --exclude-source-info --as-file-descriptor-set -o proto/released.binpb)

metrics: .venv/.installed-test ## write the metrics' page, dashboard and rules from their definitions
	$(BIN)/python -m mfalcon.metrics.publish

docs: .venv/.installed-docs ## make a site of docs/ in build/site, which needs no other host; any warning ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

client-wheel: .venv/.installed-test ## build the wheel and the sdist of mfalcon-client into dist
	cd client && ../$(BIN)/python -m hatchling build -d ../dist

clean: ## remove caches and build outputs; .venv, data and checkpoints stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One stamp per extra: a second run installs nothing until pyproject.toml changes.
.venv/.installed-%: pyproject.toml .venv/.torch | $(KERNEL_STAMP)
	@echo "mfalcon: installing mfalcon[$*] into .venv"
	@$(PIP_INSTALL) -e '.[$*]' | sed -n -E '/^(Collecting|Installing|Successfully installed)/p'
	@touch $@

# An installation that stands compiles nothing, so changed sources of the fused kernel are compiled here.
$(KERNEL_STAMP): kernels/cpu/build_library.py $(wildcard kernels/cpu/src/*) | .venv/bin/python
	@$(BIN)/python -m kernels.cpu.build_library --fit
	@mkdir -p $(@D) && touch $@

.venv/.torch: | .venv/bin/python
	@echo "mfalcon: installing $(TORCH) into .venv$(if $(TORCH_INDEX), from $(TORCH_INDEX)) (about 200 MB for the CPU build)"
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "mfalcon needs Python 3.11 to 3.13; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "mfalcon: creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
