#!/usr/bin/env bash
# Lint, format, types and all tests, in the repository's own .venv.
# Arguments go to pytest: bash scripts/test.sh tests/resnet -k config
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements-dev.txt

"$PY" -m ruff check .
"$PY" -m ruff format --check .

# Types are checked, and tests that meet deadlines run, beside the others; what came of them is said last.
types=$(mktemp) live=$(mktemp)
trap 'rm -f "$types" "$live"; kill $(jobs -p) 2>/dev/null || true' EXIT
nice -n 10 "$PY" -m mypy >"$types" 2>&1 &
mypy=$!

# Right after an installation nothing is compiled. Processes that begin together would all compile the same packages,
# which takes 12 seconds of each: one does it for them.
if ! compgen -G "$VENV/lib/python*/site-packages/torch/__pycache__" >/dev/null; then
    "$PY" -c 'import importlib, tests.warm as warm; [importlib.import_module(name) for name in warm.PRELOADED]' || true
fi

# One process per core, each with one thread of its own: more of them only compete. Each begins with tests that stand
# together, so that what these share is made once.
export OMP_NUM_THREADS=1
tests=("$PY" -m pytest -n auto --dist worksteal)
failed=0
if (($#)); then
    "${tests[@]}" "$@" || failed=$?
else
    # Tests in real time wait most of the time, and then need a core at once: all others make way for them.
    "${tests[@]}" -m real_time >"$live" 2>&1 &
    meeting=$!
    nice -n 10 "${tests[@]}" -m "not real_time" || failed=$?
    wait "$meeting" || failed=$?
fi
wait "$mypy" || failed=$?
cat "$live" "$types"
exit "$failed"
