"""Our rules and attacks compared with those of other packages: how far apart their results are, and why.

`python -m scripts.conformance` compares over random inputs. Where two differ, the reason is given, and tried: ours is
computed once more in their way, and then the results have to agree.
"""
