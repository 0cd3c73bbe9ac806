"""The sections of `python -m scripts.gpu_check`: what each looks at, and what must be so.

A section module has `rows(setting)`, which yields a `Row` for each finding as soon as there is one.
"""
