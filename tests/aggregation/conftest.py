from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference():
    """The module of slow, obvious definitions next to this file."""
    path = Path(__file__).with_name("reference.py")
    spec = importlib.util.spec_from_file_location("aggregation_reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
