# make demo and make test are all that a newcomer needs; both set up one .venv/ in the clone.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
DEMO   := build/demo-run
WHOLE  := '.[test,tensorrt]'

NATIVE_SOURCES := CMakeLists.txt setup.py $(shell find csrc -type f)
SOURCES := $(shell find cdul_fast -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: demo test check-scale compare finetune lint sanitize fuzz wheel lower audit soak bench bench-quick ptxas gpu-check clean

# One rule, so that the extension is compiled once; the dependencies are resolved when pyproject.toml changed.
$(VENV)/.installed: pyproject.toml $(NATIVE_SOURCES) $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(if $(filter pyproject.toml,$?),$(WHOLE),--no-deps .)
	touch $@

# By name, not by path: pip takes the extras of the installed package and does not compile it again.
$(VENV)/.dev: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[dev]'
	touch $@

demo: $(VENV)/.installed
	$(PY) -m cdul_fast.label cdul_fast/assets/demo/photos --model tiny --out $(DEMO) --overwrite
	$(PY) -m cdul_fast.evaluate $(DEMO) --truth cdul_fast/assets/demo/truth.csv
	$(PY) -m cdul_fast.compare_labels $(DEMO) --truth cdul_fast/assets/demo/truth.csv --zeta 0
	@echo "report: $(abspath $(DEMO))/report.html"

test: $(VENV)/.installed
	$(PY) -m pytest

# A Ray cluster of three simulated machines, an S3 server, the readers of other programs. With far fewer photos a
# run ends before the tests can interrupt it.
SCALE_PHOTOS ?= 2000
check-scale: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[scale-test]'
	$(PY) -m pytest --photos $(SCALE_PHOTOS) tests/scale tests/unit/test_data_remote.py \
	  tests/unit/test_data_hugging_face.py tests/unit/test_conversion.py

# Needs the real data beside the clone; see configs/compare_voc12_photos.yaml.
compare: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[offline]'
	$(PY) -m cdul_fast.compare configs/compare_voc12_photos.yaml

# The whole network instead of a head on frozen features: slow on a CPU. Needs the same data.
finetune: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[offline]'
	$(PY) -m cdul_fast.compare configs/finetune_voc12_photos.yaml
	cp build/finetune/comparison.json benchmarks/results/finetune_voc12_photos.json

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

# Native code under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize: $(VENV)/.dev
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m scripts.sanitize

# A wheel as users get it: its manylinux tag checked, installed in a bare environment, and used there.
wheel: $(VENV)/.dev
	rm -rf build/wheel
	$(PY) -m build --wheel --outdir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m scripts.check_wheel build/wheel/*.whl --out dist

# The lowest versions that pyproject.toml allows, in an environment of their own. Crops are compared with
# Pillow 13 to the bit, so those tests are left to the newest versions.
LOWER := build/lower
lower:
	test -x $(LOWER)/bin/python || $(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --quiet -c tests/requirements-lower.txt . pytest pytest-timeout hypothesis pandas
	$(LOWER)/bin/python -m pytest -q tests/ops/test_aggregate.py tests/ops/test_label_step.py tests/ops/test_bounds.py \
	  tests/ops/test_crop_resize_calls.py tests/unit/test_data_*.py tests/unit/test_cli.py tests/unit/test_encoders.py \
	  tests/cli/test_label.py tests/cli/test_label_resume.py tests/cli/test_label_tiny.py

# Known weaknesses of all packages in the environment; asks PyPI, and says so where it cannot.
audit: $(VENV)/.dev
	$(PY) -m scripts.audit

# Memory, open files and threads over 200,000 inputs; see docs/reliability.md.
soak: $(VENV)/.installed
	$(PY) -m scripts.soak --out build/soak-stub.json

# All parsers, for twenty minutes unless told otherwise.
FUZZ_SECONDS ?= 1200
fuzz: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[fuzz]'
	$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install --quiet 'cdul_fast[bench]'
	touch $@

# A process a module: none inherits another's threads and memory, and a failure loses no other's record.
bench: $(VENV)/.bench
	rm -rf build/bench
	mkdir -p build/bench
	failed=0; for test in benchmarks/test_*.py; do \
	  name=$$(basename $$test .py); \
	  $(PY) -m pytest $$test -q --benchmark-columns=median,iqr \
	    --benchmark-json build/bench/cpu-$${name#test_}.json \
	    $(if $(PILLOW_SIMD),--pillow-simd '$(PILLOW_SIMD)') || failed=1; \
	done; \
	rm -f benchmarks/results/cpu-*.json; \
	cp build/bench/cpu-*.json benchmarks/results/; \
	$(PY) -m benchmarks.tables && exit $$failed

bench-quick: $(VENV)/.bench
	$(PY) -m pytest benchmarks -q --benchmark-columns=median,iqr --quick

# Registers, shared memory and spills of every kernel; needs nvcc and no GPU.
ptxas:
	$(PYTHON) scripts/ptxas_report.py

# On a machine with a GPU: build, tests, kernels, encoders and the whole way, in under nine minutes. No network;
# it needs Python, torch, NumPy, pytest, pybind11, cmake, ninja and nvcc, and names what else it goes without.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) build dist *.egg-info cdul_fast/_native*.so
