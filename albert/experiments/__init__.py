"""The paper's experiments with ALBERT: one baseline from scratch, and attacks that begin from its checkpoints.

`grid` says which swarms there are, `series` runs what is not finished, `local` does so on this machine, `aws` there.
"""
