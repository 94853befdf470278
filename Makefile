# `make demo` shows the engine at work; `make test` runs everything. Both set the machine up first (as root).
.PHONY: demo test test-long check unit e2e bench lock venv clean
# Without compiled modules every start of the daemon, of a command and of a worker costs a quarter of a second more.
unexport PYTHONDONTWRITEBYTECODE
PY = .venv/bin/python
PYTEST = PATH="$(CURDIR)/.scratch/bin:$$PATH" $(PY) -m pytest

demo:
	@tools/setup run
	@$(PY) tools/demo.py

venv:
	@tools/setup run

test:
	@tools/setup test
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@$(PYTEST) -q -m "not long" || { \
	    echo "make: the tests that failed run once more, by themselves: what passes now depends on load, and is a bug"; \
	    $(PYTEST) -q -m "not long" --last-failed --last-failed-no-failures none; }

test-long:
	@tools/setup test
	@$(PYTEST) -q

check:
	@tools/setup run
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@$(PYTEST) -q tests/unit

e2e:
	@tools/setup test
	@$(PYTEST) -q -m "not long" tests/e2e

bench:
	@tools/setup test
	@$(PY) -m tests.bench

lock:
	@$(PY) -m pip install -q uv
	@$(PY) -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-header -q -o requirements.lock

clean:
	rm -rf .venv .scratch .mypy_cache .ruff_cache .pytest_cache
