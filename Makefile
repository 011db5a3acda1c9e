# Everything below sets itself up: Python 3.11 and git are enough.
PYTHON ?= python3.11
PYTHON310 ?= python3.10
VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SCRIPTS := examples/uniad
WITHOUT_TORCH := boxes check_session collision compare frames ground_truth image_buffers map_truth \
	metrics_boxes metrics_grids metrics_motion metrics_planning nuscenes_source only_numpy pinned_pool profile results \
	run_all run_engine scale_out sequence summary synthetic tensorrt_session
DEMO := $(CURDIR)/demo

.PHONY: demo test lint test-full test-engines test-310 bench plugins clean

demo: $(READY)  ## all five steps on a tiny checkpoint and a generated nuScenes-mini, on the CPU
	cd $(SCRIPTS) && $(PY) -m data.recipe -o $(DEMO)/input --frames 1
	cd $(SCRIPTS) && $(PY) -m data.synthetic -o $(DEMO)/nuscenes --scenes mini_val --frames 8
	$(PY) $(SCRIPTS)/pytorch_convert.py -i $(DEMO)/input/tiny_e2e.pth -o $(DEMO)/c-model --anchors $(DEMO)/input/motion_anchors.npy
	$(PY) $(SCRIPTS)/builder.py -i $(DEMO)/c-model -o $(DEMO)/engine.plan -quant=False
	$(PY) $(SCRIPTS)/run.py -i $(DEMO)/nuscenes -e $(DEMO)/engine.plan -o $(DEMO)/base_result --fresh
	$(PY) $(SCRIPTS)/run.py -i $(DEMO)/nuscenes -e $(DEMO)/engine.plan -o $(DEMO)/result --visualize --fresh
	$(PY) $(SCRIPTS)/summarize.py -i $(DEMO)/result -b $(DEMO)/base_result --max-drop AMOTA=0.001 NDS=0.001 L2=0.01 Col=0
	@echo "Report: $(DEMO)/result/summary.html, pictures: $(DEMO)/result/pictures"

test: $(READY)  ## the default suite, under 8 minutes on 2 cores
	$(PY) -m pytest -n 2 --dist loadfile -m "not full"

test-full: $(READY)  ## the full-size model: against its goldens (about 4 minutes, 4 GB), and test-engines
	$(PY) -m pytest -m full

test-engines: $(READY)  ## full-size TensorRT for RTX engines, built without a GPU: about 5 minutes, 4 GB
	$(PY) -m pytest -rsP -m full tests/test_full_engines.py

test-310:  ## what surrounds an engine, without torch, under Python 3.10, which TensorRT 8.6 needs: about 2 minutes
	$(PYTHON310) -m venv $(VENV)310
	$(VENV)310/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-nuscenes.txt pytest==9.2.0
	$(VENV)310/bin/python -m pytest --noconftest -p no:cacheprovider $(addprefix tests/test_,$(addsuffix .py,$(WITHOUT_TORCH)))

bench: $(READY)  ## times and memory of the torch executor on this CPU, the tiny model and full size: about 4 minutes
	$(PY) benchmarks/benchmark_cpu.py --model tiny_e2e -n 10 --warm-up 2 -o build/bench/cpu_tiny.json
	$(PY) benchmarks/benchmark_cpu.py --model base_e2e -n 3 -o build/bench/cpu_base.json

lint: $(READY)  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(READY): requirements.txt requirements-torch.txt requirements-nuscenes.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "error: Python 3.11 is needed ($(PYTHON)): install it or set PYTHON=path" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

plugins:  ## the CUDA plugin library; TENSORRT=folder of TensorRT's headers (needs CMake and nvcc)
	cmake -S plugins -B build/plugins -DTENSORRT_INCLUDE_DIR="$(TENSORRT)"
	cmake --build build/plugins -j

clean:  ## remove the environment and the demo's files
	rm -rf $(VENV) $(DEMO)
