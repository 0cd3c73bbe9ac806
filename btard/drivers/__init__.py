"""Who answers a peer's effects: `local` runs a whole cohort in one process, `collective` a process for each peer.

`server` runs the baselines at a trusted server.
Drivers move messages and ask for gradients; they decide nothing that the protocol decides.
"""
