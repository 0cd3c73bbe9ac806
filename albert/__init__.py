"""ALBERT pre-trained by a swarm: data, model, peers that find each other through hivemind, attackers among them."""

import warnings

# hivemind compiles its activation functions when it is imported; whoever trains can do nothing about how.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
