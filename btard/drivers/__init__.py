"""Who answers a peer's effects: `local` runs a whole cohort in one process, `server` the baselines at a trusted server.

Drivers move messages and ask for gradients; they decide nothing that the protocol decides.
"""
