#!/usr/bin/env bash
# Lint, format, types and all tests, in the repository's own .venv.
# Arguments go to pytest: bash scripts/test.sh tests/resnet -k config
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements-dev.txt

"$PY" -m ruff check .
"$PY" -m ruff format --check .

# Types are checked while the tests run, and what was found is said last.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$PY" -m mypy >"$types" 2>&1 &
mypy=$!

# One process per core, each with one thread of its own: more of them only compete. Each begins with tests that stand
# together, so that what these share is made once.
export OMP_NUM_THREADS=1
failed=0
"$PY" -m pytest -n auto --dist worksteal "$@" || failed=$?
wait "$mypy" || failed=$?
cat "$types"
exit "$failed"
