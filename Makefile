# Everything sets itself up: a .venv with the pins of constraints.txt, made once and again when they change.
#   make demo       teacher -> student -> INT8 -> report in runs/demo/report (again: reuses what is there)
#   make test       the tests, without those that need a GPU; `make test-gpu` runs those
#   make PYTHON=python3.12 demo    another Python, 3.10 or later
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-gpu lint type bench dist clean

demo: $(READY)
	$(BIN)/mmcompress run demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -q -m 'not gpu'

test-gpu: $(READY)
	$(BIN)/python -m pytest -q -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy -p mmcompress

bench: $(READY) .venv-peers/.ready demo
	@failed=0; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || failed=1; done; exit $$failed

# The tools that the benchmarks compare with, in an environment of their own.
.venv-peers/.ready: constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt torch onnx onnxruntime openvino nncf
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps torch-pruning
	touch $@

dist: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) .venv-peers build dist runs .mypy_cache .ruff_cache .pytest_cache src/mmcompress.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mmcompress needs Python 3.10 or later; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@
