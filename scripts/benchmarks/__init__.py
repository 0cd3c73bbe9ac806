"""The sections of `python -m scripts.benchmark`: what each measures and how its tables follow from the measurements.

A section module has `cases(settings)`, the measurements by name, each a function that returns JSON values, and
`tables(results)`, which makes tables of those values alone: the page is drawn again without measuring again. So are the
bounds that the project holds itself to, by `aims(results)`.
"""
