"""The tests that need a GPU, by pytest in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.gpu_checks.rows import Row, Setting

ROOT = Path(__file__).parents[2]
NEEDS = "skipif(not torch.cuda.is_available()"
"""How a test says that it needs a GPU."""
PACKAGES = ("pytest", "pytest_timeout", "hypothesis")
LEAST = 20.0
"""Seconds that the imports may take, however little time is left."""


def rows(setting: Setting) -> Iterator[Row]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Row("pytest -k cuda", f"not run: {', '.join(missing)} not installed: pip install -r requirements-dev.txt")
    elif setting.device == "cpu":
        yield Row("pytest -k cuda", "not run: they need a GPU")
    else:
        yield run(setting.left)


def run(seconds: float) -> Row:
    """The result of the files that have such tests."""
    files = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if NEEDS in file.read_text())
    words = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", "cuda or gpu", *files]
    limit = max(LEAST, seconds)
    try:
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Row("pytest -k cuda", f"not finished after {limit:.0f} s", False)
    lines = ended.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = next((line for line in reversed(lines) if line.strip()), ended.stderr.strip()[-200:])
    return Row("pytest -k cuda", "; ".join([last, *failed]), ended.returncode == 0 and " passed" in last)
