"""What records a run as proof, and what audits it: the recorder, the attestation, the check of a ledger by replay.

It builds on `btard.protocol`; `btard.drivers` write with the recorder, so nothing here may import them, nor a model.
The names below come on first use: `python -m btard.audit --help` needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btard.audit.auditor import audit
    from btard.audit.report import AuditError, Report

__all__ = ["AuditError", "Report", "audit"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'btard.audit' has no attribute {name!r}")
    return getattr(import_module("btard.audit.auditor" if name == "audit" else "btard.audit.report"), name)
