# Everything lives in .venv, made on first use. `make help` lists the targets.
PYTHON ?= python3
SERVE ?= 1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# test processes, of one thread each, which often wait for a server; some hold rows of ten million scores, so more take
# more memory
WORKERS ?= 3

.PHONY: help demo test check format clean audit test-contract bench-bulk bench-calibration bench-heads bench-index bench-simplex bench-training bench-images bench-faces fuzz-images
.PHONY: bench bench-losses bench-losses-clinc bench-faces-pairs bench-images-omniglot-taylor bench-first-answer bench-images bench-images-in-turn bench-images-omniglot bench-pages bench-service bench-service-own
.PHONY: bench-training-minilm bench-calibration-finetuned bench-calibration-static bench-calibration-finetuned-clinc bench-index-million bench-service-peers

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 30

# torch first: a bare `torch` pulled in by another package may bring gigabytes of CUDA libraries.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "surematch needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/ready  ## train, index, calibrate, answer three questions, then serve on 127.0.0.1 (SERVE=0: stop before)
	@$(BIN)/surematch demo --port $(PORT) $(if $(filter 0,$(SERVE)),--no-serve) $(ARGS)

.PHONY: suite
test: $(VENV)/ready  ## the whole test suite, lint and types included
	@$(MAKE) --no-print-directory -j 2 suite check

suite: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: test-crash test-damage test-life test-concurrency test-optimized
test-crash: $(VENV)/ready  ## kill -9 a writer 200 times, and run out of disk at every size: nothing lost, nothing half there
	SUREMATCH_KILLS=$${SUREMATCH_KILLS:-200} $(BIN)/python -m pytest -s tests/index/test_crash.py tests/index/test_faults.py $(ARGS)

test-damage: $(VENV)/ready  ## open a collection with each of 1,200 mutated snapshot files: all refused, no wrong answer
	SUREMATCH_MUTATIONS=$${SUREMATCH_MUTATIONS:-1200} $(BIN)/python -m pytest tests/index/test_damage.py $(ARGS)

test-life: $(VENV)/ready  ## 300 lives of a collection, 30 of a service: writes, feedback, ways back, copies, damage and kills in any order
	LIVES=$${LIVES:-300} $(BIN)/python -m pytest tests/index/test_life.py tests/service/test_life.py $(ARGS)

test-concurrency: $(VENV)/ready  ## readers, writers, deleters and compaction together for two minutes
	OMP_NUM_THREADS=1 SUREMATCH_SECONDS=120 $(BIN)/python -m pytest tests/index/test_concurrency.py $(ARGS)

UNSEEN := ignore:assertions not in test modules
test-optimized: $(VENV)/ready  ## the tests of the index room under `python -O`: no check may be an assert
	PYTHONOPTIMIZE=1 PYTHONWARNINGS="$(UNSEEN)" OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(WORKERS) -W "$(UNSEEN):pytest.PytestConfigWarning" tests/index $(ARGS)

.PHONY: test-cuda
test-cuda: $(VENV)/ready  ## on a CUDA device, with a torch for it in .venv: the maps and losses there, and training on it
	$(BIN)/python -m pytest tests/simplex/test_cuda.py tests/training $(ARGS)

.PHONY: test-jobs
test-jobs: $(VENV)/ready  ## jobs over HTTP, training included: killed and continued, cancelled, promoted
	SUREMATCH_TRAIN_JOB=1 $(BIN)/python -m pytest tests/service/jobs $(ARGS)

check: $(VENV)/ready  ## lint, types, and who may import whom
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready  ## format the code
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# Each part writes its section of docs/benchmarks.md. With ARGS, which the script gets, it is a look and writes nothing.
part = $(BIN)/python benchmarks/bench_all.py --only $(1) $(if $(ARGS),-- $(ARGS))
bench: $(VENV)/ready  ## every benchmark, and docs/benchmarks.md of what they printed: two to three hours (ARGS="--only simplex heads")
	$(BIN)/python benchmarks/bench_all.py $(ARGS)

bench-simplex: $(VENV)/ready  ## speed of the maps against the entmax package
	$(call part,simplex)

bench-training: $(VENV)/ready  ## unseen-class retrieval, speed and memory of training, beside peers
	$(call part,training)

bench-training-minilm: $(VENV)/ready  ## the same from minilm, one seed, at most 80 rows a class, one peer
	$(call part,training-minilm)

bench-losses: $(VENV)/ready  ## which loss finds classes it has never seen: banking77 and the demo, three seeds
	$(call part,losses)

bench-losses-clinc: $(VENV)/ready  ## the same on clinc150
	$(call part,losses-clinc)

bench-heads: $(VENV)/ready  ## training with 10,000 to 1,000,000 classes: steps/s and memory of full, sampled, exact sparse heads
	$(call part,heads)

bench-images: $(VENV)/ready  ## faces of people never seen: margin and plain softmax, PCA (ARGS="--data DIR")
	$(call part,images)

bench-images-in-turn: $(VENV)/ready  ## the same of all forty people, ten at a time unseen: how far the losses differ (an hour)
	$(call part,images-in-turn)

bench-images-omniglot: $(VENV)/ready  ## characters never seen: margin and plain softmax
	$(call part,images-omniglot)

bench-images-omniglot-taylor: $(VENV)/ready  ## the same: Taylor and plain softmax
	$(call part,images-omniglot-taylor)

bench-calibration: $(VENV)/ready  ## how honest the probabilities are, beside Platt, isotonic, temperature and raw cosines
	$(call part,calibration)

bench-calibration-finetuned: $(VENV)/ready  ## banking77 after the default training, two seeds (ARGS="--seeds 5")
	$(call part,calibration-finetuned)

bench-calibration-static: $(VENV)/ready  ## banking77 after training the static encoder, ten splits, with unseen classes and without
	$(call part,calibration-static)

bench-calibration-finetuned-clinc: $(VENV)/ready  ## clinc150 after it
	$(call part,calibration-finetuned-clinc)

bench-index: $(VENV)/ready  ## every engine beside raw FAISS, hnswlib and usearch, 100,000 vectors
	$(call part,index)

bench-index-million: $(VENV)/ready  ## the same with a million
	$(call part,index-million)

bench-service: $(VENV)/ready  ## both parts of the service, a quarter of an hour (ARGS="--part hnsw": flat, hnsw, text, peers)
	$(BIN)/python benchmarks/bench_all.py --only service-own $(if $(ARGS),-- $(ARGS),service-peers)

bench-service-own: $(VENV)/ready  ## the service over HTTP beside raw FAISS, texts through its encoders
	$(call part,service-own)

bench-service-peers: $(VENV)/ready  ## the service beside other vector databases
	$(call part,service-peers)

bench-bulk: $(VENV)/ready  ## a million texts through `surematch index`: time, memory, kill -9 and --resume
	$(call part,bulk)

bench-first-answer: $(VENV)/ready  ## from a CSV to the first answer over HTTP, beside a hand-written script
	$(call part,first-answer)

bench-pages: $(VENV)/ready  ## the figures README and the guides quote, by the commands a reader types
	$(call part,pages)

test-contract: $(VENV)/ready  ## thousands of generated requests against the OpenAPI document, and 100 reloads under load
	SUREMATCH_CASES=700 SUREMATCH_LEAST=5000 SUREMATCH_RELOADS=100 \
	  $(BIN)/python -m pytest tests/service/test_contract.py tests/service/test_reload.py $(ARGS)

audit: $(VENV)/ready  ## known vulnerabilities of the pinned dependencies (asks the vulnerability service of PyPI)
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)

bench-faces: $(VENV)/ready  ## LFW: detect, align, encode, index, identify; promises against held-back people (ARGS="--data PEOPLE")
	$(call part,faces)

bench-faces-pairs: $(VENV)/ready  ## LFW's 6,000 pairs at the published operating point
	$(call part,faces-pairs)

fuzz-images: $(VENV)/ready  ## 1,500 damaged pictures through the service: no 5xx, no crash, memory bounded
	FUZZED_PICTURES=1500 $(BIN)/python -m pytest tests/service/test_pictures.py -k damaged $(ARGS)

clean:  ## remove the environment and everything the demo made
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache

.PHONY: test-overload test-soak
test-overload: $(VENV)/ready  ## four times the capacity for a minute: who is accepted waits little longer, the rest get 503
	PYTHONPATH=. $(BIN)/python benchmarks/overload.py $(ARGS)

test-soak: $(VENV)/ready  ## searches, writes, snapshots and reloads for SOAK_MINUTES (20): no failure, no growth of memory
	PYTHONPATH=. SOAK_MINUTES=$(or $(SOAK_MINUTES),20) $(BIN)/python benchmarks/soak.py $(ARGS)
