"""One peer's side of BTARD, written once as a generator of effects: no sockets, no clock, no model.

Every step of the algorithm is a file under its own name (commit, exchange, aggregate, coin, report, verify, validate,
accuse, choose, ledger); `peer.py` strings them together. Nothing here may import `attacks`, `audit`,
`drivers` or a network, nor touch a file.
"""
