"""How peers of a swarm find each other and talk: hivemind's libp2p daemon and DHT, frames on streams, state downloads.

It moves bytes, bounds what anybody may send, and knows who is let in. What is said is the protocol's business.

Why not `hivemind.Optimizer` with an averager of our own: BTARD's group follows from its ledger. It needs no matchmaking
and no leader, and nothing of what a stock optimizer does when a round fails (local gradients, averaged parameters, the
state of any peer that claims to be ahead) may happen here. One layer below, hivemind has all that is needed:
authenticated streams through NATs and relays (`P2P`), and a DHT to meet (`DHTNode`), both in the trainer's own process.
"""

import warnings

# hivemind compiles its activation functions when it is imported; a user can do nothing about how.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
