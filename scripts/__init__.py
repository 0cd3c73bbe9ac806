"""Programs of the repository that are not part of the packages: measurements, searches, documents, tests."""

import os

import btard as btard  # first: a program that is interrupted while it imports ends with one line

# Before torch is imported: threads that wait busily take the cores from those that work, and disturb what is measured.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
