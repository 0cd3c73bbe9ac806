"""What records a run as proof, and what audits it: the recorder, the attestation, the check of a ledger by replay.

Needs `btard.protocol` alone; `btard.drivers` write with the recorder, so nothing here may import them, nor a model.
"""

from btard.audit.auditor import audit
from btard.audit.report import AuditError, Report

__all__ = ["AuditError", "Report", "audit"]
