# Installs into .venv on first use: `make generate` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
CSRC := $(shell find csrc tests/emulator -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
TRITON_TESTS := $(sort $(shell find tests -name 'test_triton*.py'))

.PHONY: generate test test-card lint clean

generate: .venv/installed
	$(BIN)/dllm-kernels generate ldlm-demo --steps 50 --solver ddpm --grid log_snr:-4.5:-2.9 --batch 3
	$(BIN)/dllm-kernels generate

# Two test processes on two cores: one thread each.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/pytest tests -n 2 --dist loadgroup
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 $(TRITON_TESTS)

# All that needs a card, within eight minutes; `python -m tests.card` does the same without make.
test-card: .venv/installed
	$(BIN)/python -m tests.card

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

clean:
	rm -rf .venv build dist *.egg-info dllm_kernels/_C*.so .pytest_cache .ruff_cache .hypothesis .benchmarks .schemathesis

.venv/installed: pyproject.toml constraints.txt setup.py CMakeLists.txt $(CSRC)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dllm-kernels needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,text,scale]'
	touch $@
