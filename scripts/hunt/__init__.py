"""The hunt: random and searched adversaries against random cohorts.

A *case* is a cohort (`environments.py`), a program for its Byzantine peers (`grammar.py`, `programs.py`), a seed and a
number of steps. `play.py` runs it and checks the invariants (`invariants.py`) after every step. `search.py` keeps the
cases that reach new code or new entries of the ledger, and changes them further. See docs/hunt.md.
"""
