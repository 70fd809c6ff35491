# GNU make 3.81 or newer (macOS has 3.81). `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help repro seeds predict serve pull compare report plots verify doctor test soak check audit bench format lock

# Any Python from 3.11 on; only used to make .venv.
PYTHON ?= python3
# What is passed on: make repro ARGS="--force train", make test ARGS="-k params", make lock ARGS=--upgrade
ARGS ?=
# What the work tree is compared with: a commit, branch, tag or experiment
REV ?=
# How many seeds `make seeds` trains the recipe with
N ?= 5
# What `make predict` looks at: files, folders, URLs
FILES ?=

# Where `python3` is a script of bash, as pyenv's is, this would be read before Python starts.
unexport BASH_ENV

# What follows -- is run as `python -m` of .venv, which holds these requirements by then. -I and -S: whatever the
# environment holds for Python, tools/run.py is to get as far as dealing with it.
RUNTIME := $(PYTHON) -I -S tools/run.py requirements.txt
DEVELOPMENT := $(RUNTIME) requirements-dev.txt

help: ## list the targets
	@sed -n 's/^\([a-z]*\): ## /  make \1|/p' Makefile | awk -F '|' '{ printf "%-15s%s\n", $$1, $$2 }'

repro: ## run what is not up to date: download, preprocess, train, evaluate (ARGS go to dvc repro)
	@$(RUNTIME) integrity.repair integrity.params -- dvc repro $(ARGS)

seeds: ## train the recipe with several seeds, whatever is not there yet: make seeds N=5 (ARGS=--force)
	@$(RUNTIME) integrity.repair integrity.params -- seeds "$(N)" $(ARGS)

predict: ## classes of pictures: make predict FILES="a.png photos/" (ARGS=--format=csv --out=FILE --model=REV, …)
	@$(RUNTIME) -- use.predict $(ARGS) $(FILES)

serve: ## the model on a page, and for programs: http://127.0.0.1:8000 (ARGS=--port=8001 --model=REV, …)
	@$(RUNTIME) requirements-serve.txt -- use.serve $(ARGS)

pull: ## what dvc.lock names, from the remote, checked before it is used (ARGS: targets, --run-cache, --remote=NAME)
	@$(RUNTIME) -- integrity.pull $(ARGS)

compare: ## what differs from another revision, and is it noise: make compare REV=main (ARGS=--format=markdown, …)
	@$(RUNTIME) -- review.compare "$(REV)" $(ARGS)

report: ## the run as one page, report.html, and what changed: make report REV=main (ARGS=--out=FILE.html)
	@$(RUNTIME) -- review.report $(if $(REV),--against "$(REV)") $(ARGS)

plots: ## the pages of `dvc plots` without a network: make plots [REV=main], then open dvc_plots/index.html
	@$(DEVELOPMENT) review.offline_plots -- dvc plots $(if $(REV),diff "$(REV)",show) $(ARGS)

verify: ## rebuild HEAD from nothing in a temporary folder: does it end in the committed bytes?
	@$(RUNTIME) -- integrity.verify

doctor: ## hash the cache and the outputs again: what is damaged, and what mends it
	@$(RUNTIME) -- integrity.doctor

# Two at once, since many wait for something; the tests of a file may share what they set up, so a file stays together.
test: ## run the tests, but for the long ones (ARGS go to pytest)
	@$(DEVELOPMENT) -- pytest --numprocesses=2 --dist=loadfile -m "not soak" $(ARGS)

soak: ## run the long tests: kills, full disks, emulated processors, servers (ARGS go to pytest)
	@$(DEVELOPMENT) -- pytest --numprocesses=2 --dist=loadfile -m soak $(ARGS)

check: ## format, lint, types and what imports what; changes nothing
	@$(DEVELOPMENT) -- ruff format --check .
	@$(DEVELOPMENT) -- ruff check .
	@$(DEVELOPMENT) -- mypy
	@$(DEVELOPMENT) -- tests.layers --no-cache

# --strict: without it, packages that could not be looked up count as free of vulnerabilities. CVE-2025-69872 is about
# diskcache, DVC's state, being unpickled from a folder that others can write to: tools/environment.py keeps it private.
audit: ## look every pinned package up among the known vulnerabilities of PyPI; an error if one cannot be
	@$(DEVELOPMENT) -- pip_audit --strict --require-hashes --disable-pip --progress-spinner off \
		--ignore-vuln CVE-2025-69872 -r requirements.txt -r requirements-serve.txt

bench: ## measure speed against a plain loop, about half an hour, on a machine that does nothing else (ARGS: parts)
	@$(RUNTIME) integrity.params -- dvc repro
	@$(DEVELOPMENT) -- benchmarks $(ARGS)

format: ## format the code, and mend what lint can mend
	@$(DEVELOPMENT) -- ruff check --fix-only .
	@$(DEVELOPMENT) -- ruff format .

lock: ## pin pyproject.toml's dependencies anew, with uv (ARGS=--upgrade for the newest)
	@command -v uv > /dev/null || { echo "error: needs uv: https://docs.astral.sh/uv" >&2; exit 2; }
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group serve -c requirements.txt -o requirements-serve.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet $(ARGS) \
		--group dev -c requirements.txt -o requirements-dev.txt
