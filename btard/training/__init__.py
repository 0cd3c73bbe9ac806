"""A PyTorch model, a loss and a data set, trained by peers: in one process, under torchrun, or in a swarm.

Needs torch and the rest of the library; nothing here may import `btard.harness` or `btard.swarm`.
"""
