# Sourced by the scripts beside it: goes to the repository's root, and provides `ensure_venv REQUIREMENTS.txt`,
# after which $PY is the interpreter of .venv with these requirements installed.
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Threads that wait by spinning steal the few cores from those that work.
export OMP_WAIT_POLICY=passive
# uv installs without compiling. Where bytecode may not be kept, each process compiles torch anew: 3 to 8 s each.
unset PYTHONDONTWRITEBYTECODE

VENV=.venv
PY=$VENV/bin/python

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            fail "PYTHON=$PYTHON is not a Python of version 3.10 or newer"
        fi
    done
    fail "no Python of version 3.10 or newer was found; on Debian or Ubuntu: sudo apt-get install python3 python3-venv"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv"
    echo "Making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
    "$PY" -m pip install --quiet --upgrade pip
}

# uv takes a quarter of pip's time. It heeds none of pip's settings, so where it finds no packages pip does the work.
install() {
    if ! { "$PY" -m pip install --quiet uv && "$PY" -m uv pip install --quiet --python "$PY" --requirement "$1"; }; then
        "$PY" -m pip install --quiet --requirement "$1"
    fi
}

# Installs only if the requirements or the interpreter changed since the last time.
ensure_venv() {
    local requirements=$1 stamp state
    # A copied or moved environment, or one whose making was interrupted, is made anew.
    if ! "$PY" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    stamp=$VENV/installed-$(basename "$requirements")
    state=$({ "$PY" --version; cat requirements*.txt; } | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null || true)" != "$state" ]; then
        echo "Installing $requirements into $VENV (some minutes and gigabytes the first time, mostly torch)"
        install "$requirements"
        echo "$state" >"$stamp"
    fi
}
