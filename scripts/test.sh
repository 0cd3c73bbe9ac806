#!/usr/bin/env bash
# Lint, format, types and all tests, in the repository's own .venv.
# Arguments go to pytest: bash scripts/test.sh tests/resnet -k config
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements-dev.txt

"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy

# One process per core, each with one thread of its own: more of them only compete.
export OMP_NUM_THREADS=1
"$PY" -m pytest -n auto "$@"
