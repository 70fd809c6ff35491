# GNU make 3.81 or newer (macOS has 3.81). `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help repro join seeds search watch predict export serve pull compare report plots verify doctor test soak check audit
.PHONY: bench format lock

# Python 3.11 or newer, to make .venv.
PYTHON ?= python3
# Arguments of the command: make repro ARGS="--force train", make test ARGS="-k params", make lock ARGS=--upgrade
ARGS ?=
# The revision to compare with: a commit, branch, tag or experiment
REV ?=
# The head of several machines, which `make join` joins: host:port
HEAD ?=
# The number of seeds that `make seeds` trains
N ?= 5
# The pictures for `make predict`: files, folders, URLs
FILES ?=

# The number of processes that train, for one command instead of machine.processes: make repro PROCESSES=2
PROCESSES ?=
ifneq ($(PROCESSES),)
export MACHINE_PROCESSES := $(PROCESSES)
endif

# If `python3` is a bash script, as with pyenv, bash would run this file before Python starts.
unexport BASH_ENV

# Installs these requirements into .venv, and runs what follows `--` as `python -m`. With -I and -S, Python starts in any
# environment; tools/run.py then cleans it.
RUNTIME := $(PYTHON) -I -S tools/run.py requirements.txt
DEVELOPMENT := $(RUNTIME) requirements-dev.txt

help: ## list the targets
	@sed -n 's/^\([a-z]*\): ## /  make \1|/p' Makefile | awk -F '|' '{ printf "%-15s%s\n", $$1, $$2 }'

repro: ## run the stages that are out of date: download, preprocess, train, evaluate (ARGS go to dvc repro)
	@$(RUNTIME) integrity.before_repro -- dvc repro $(ARGS)

join: ## work for a head on another machine, which prints the command: make join HEAD=host:port
	@$(RUNTIME) -- integrity.join "$(HEAD)"

seeds: ## train the recipe with several seeds, if they are missing or stale: make seeds N=5 (ARGS=--force)
	@$(RUNTIME) integrity.before_repro -- seeds "$(N)" $(ARGS)

search: ## search for better parameters, as search.yaml says; a killed search continues (ARGS=--format=markdown, --show)
	@$(RUNTIME) requirements-search.txt integrity.before_repro -- review.search $(ARGS)

watch: ## list the running and queued runs, with epoch and remaining time (ARGS=--once)
	@$(RUNTIME) -- review.watch $(ARGS)

predict: ## predict the classes of pictures: make predict FILES="a.png photos/" (ARGS=--format=csv --out=FILE --model=REV, …)
	@$(RUNTIME) -- use.predict $(ARGS) $(FILES)

export: ## write the model as an ONNX file, which runs without PyTorch, and compare the two on the test set
	@$(RUNTIME) requirements-export.txt integrity.before_repro -- export

serve: ## serve the model on a page and over HTTP: http://127.0.0.1:8000 (ARGS=--port=8001 --model=REV, …)
	@$(RUNTIME) requirements-serve.txt -- use.serve $(ARGS)

pull: ## pull the outputs of dvc.lock from the remote, with checks (ARGS: targets, --run-cache, --remote=NAME)
	@$(RUNTIME) -- integrity.pull $(ARGS)

compare: ## show what differs from a revision, and whether it is noise: make compare REV=main (ARGS=--format=markdown, …)
	@$(RUNTIME) -- review.compare "$(REV)" $(ARGS)

report: ## write the run as one page, report.html, with changes: make report REV=main (ARGS=--out=FILE.html)
	@$(RUNTIME) -- review.report $(if $(REV),--against "$(REV)") $(ARGS)

plots: ## write the pages of `dvc plots` for use offline: make plots [REV=main], then open dvc_plots/index.html
	@$(DEVELOPMENT) review.offline_plots -- dvc plots $(if $(REV),diff "$(REV)",show) $(ARGS)

verify: ## rebuild HEAD from nothing in a temporary folder, and compare every byte
	@$(RUNTIME) -- integrity.verify

doctor: ## hash the cache and all outputs; list damage, with the commands that fix it
	@$(RUNTIME) -- integrity.doctor

# Two at once, since many tests wait. The tests of a file run in one process, since they may share fixtures; the files
# that take longest come first (tests/conftest.py), not those with the most tests.
IN_TWO := pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test: ## run all tests except the long ones (ARGS go to pytest)
	@$(DEVELOPMENT) -- $(IN_TWO) -m "not soak and not night" $(ARGS)

soak: ## run the long tests: kills, full disks, servers (NIGHT=1 for all of them; ARGS go to pytest)
	@$(DEVELOPMENT) -- $(IN_TWO) -m "soak$(if $(NIGHT), or night)" $(ARGS)

check: ## check format, lint, types and import rules; changes nothing
	@$(DEVELOPMENT) -- ruff format --check .
	@$(DEVELOPMENT) -- ruff check .
	@$(DEVELOPMENT) -- mypy
	@$(DEVELOPMENT) -- tests.layers --no-cache

# --strict: fail if a package cannot be looked up. CVE-2025-69872 is about diskcache, which unpickles DVC's state from a
# folder that others can write to; tools/environment.py keeps that folder private.
audit: ## look up every pinned package in PyPI's list of known vulnerabilities
	@$(DEVELOPMENT) -- pip_audit --strict --require-hashes --disable-pip --progress-spinner off \
		--ignore-vuln CVE-2025-69872 -r requirements.txt -r requirements-serve.txt -r requirements-export.txt \
		-r requirements-search.txt

bench: ## compare the speed with a plain loop; three quarters of an hour on an idle machine (ARGS: parts)
	@$(RUNTIME) integrity.params -- dvc repro
	@$(DEVELOPMENT) -- benchmarks $(ARGS)

format: ## format the code, and apply the linter's fixes
	@$(DEVELOPMENT) -- ruff check --fix-only .
	@$(DEVELOPMENT) -- ruff format .

lock: ## pin the dependencies of pyproject.toml with uv (ARGS=--upgrade for the newest versions)
	@command -v uv > /dev/null || { echo "error: needs uv: https://docs.astral.sh/uv" >&2; exit 2; }
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group serve -c requirements.txt -o requirements-serve.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group export -c requirements.txt -o requirements-export.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group onnx -c requirements.txt -c requirements-export.txt -o requirements-onnx.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group search -c requirements.txt -o requirements-search.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group dev -c requirements.txt -o requirements-dev.txt
