# Everything sets itself up: a .venv with the pins of constraints.txt, made once and again when they change.
#   make demo       teacher -> student -> INT8 -> report in runs/demo/report (again: reuses what is there)
#   make engines    a ViT-B/32's TensorRT-RTX engines for three targets, without a GPU, held against budgets
#   make test       the tests, without those that need a GPU; `make test-gpu` runs those
#   make nightly    every command of README and the guides, typed in an empty folder with an installed wheel
#   make fuzz       spoiled input at every door for an hour, other input every time
#   make PYTHON=python3.12 demo    another Python, 3.10 or later
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The time of the commit stands in what `make dist` builds, so that a commit has the same bytes wherever it is built.
RELEASED = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))

.PHONY: demo engines test test-gpu nightly fuzz lint type docs bench dist hashes sbom clean

demo: $(READY)
	$(BIN)/mmcompress run demo --out runs/demo

engines: $(READY)
	$(BIN)/python benchmarks/engines.py --out runs/engines

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m 'not gpu and not nightly'

test-gpu: $(READY)
	$(BIN)/python -m pytest -q -m gpu

nightly: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m nightly

fuzz: $(READY)
	FUZZ_SECONDS=300 $(BIN)/python -m pytest -q -n auto tests/fuzz

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy -p mmcompress

docs: $(READY)
	$(BIN)/python docs/tree.py
	$(BIN)/python docs/documents.py

bench: $(READY) .venv-peers/.ready .venv-modelopt/.ready demo
	@failed=0; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || failed=1; done; exit $$failed

# The tools that the benchmarks compare with, in environments of their own. Model Optimizer asks for older ONNX packages,
# and for onnxruntime-gpu, in whose place the CPU build does.
.venv-peers/.ready: constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt torch onnx onnxruntime openvino nncf
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps torch-pruning
	touch $@

.venv-modelopt/.ready:
	$(PYTHON) -m venv .venv-modelopt
	.venv-modelopt/bin/python -m pip install --disable-pip-version-check --quiet torch==2.13.0 'onnx~=1.21.0' 'onnxruntime~=1.24.2' \
		onnx-graphsurgeon 'onnxconverter-common~=1.16.0' cppimport lief ml_dtypes onnxscript onnxslim polygraphy ninja \
		nvidia-ml-py omegaconf 'pulp<4' regex safetensors scipy tqdm PyYAML rich pydantic 'setuptools>=80'
	.venv-modelopt/bin/python -m pip install --disable-pip-version-check --quiet --no-deps nvidia-modelopt==0.47.0
	touch $@

dist: $(READY)
	rm -rf build dist
	SOURCE_DATE_EPOCH=$(RELEASED) $(BIN)/python -m build --outdir dist .
	SOURCE_DATE_EPOCH=$(RELEASED) $(BIN)/python tests/plain_sdist.py dist/*.tar.gz
	$(BIN)/python tests/check_wheel.py dist/*.whl

# What is installed here: a bill of materials (CycloneDX) and the licenses, by tools in an environment of their own.
sbom: $(READY) .venv-supply/.ready
	mkdir -p dist
	.venv-supply/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.cdx.json
	.venv-supply/bin/pip-licenses --python $(BIN)/python --order license --with-urls --format markdown --output-file dist/licenses.md

# The hashes of every file of every pin, for every system; torch's build differs by machine.
hashes: .venv-supply/.ready
	sed -n '/^#/p' constraints-hashes.txt > constraints-hashes.new
	.venv-supply/bin/uv pip compile constraints.txt --no-deps --universal --python-version 3.10 --no-emit-package torch \
		--generate-hashes --no-header --no-annotate -q >> constraints-hashes.new
	mv constraints-hashes.new constraints-hashes.txt

.venv-supply/.ready:
	$(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --disable-pip-version-check --quiet uv==0.13.9 cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-modelopt .venv-supply build dist runs .mypy_cache .ruff_cache .pytest_cache src/mmcompress.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mmcompress needs Python 3.10 or later; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@
