"""What answers a peer's effects: `local` runs a whole cohort in one process, `collective` one process per peer.

`loop` interprets the effects for all of them, and for `btard.swarm`. A driver says how messages move and where
gradients come from; it decides nothing that the protocol decides. `server` runs the baselines at a trusted server, and
`emulated` the authors' simulation of the protocol.
"""
