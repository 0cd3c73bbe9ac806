"""Programs of the repository that are not part of the packages: measurements, searches, documents, tests."""

import btard as btard  # first: a program that is interrupted while it imports ends with one line
