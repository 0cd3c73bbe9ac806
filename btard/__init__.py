"""BTARD: Byzantine-tolerant training without a server (Gorbunov et al., ICML 2022, arXiv 2106.11257).

The library needs torch, numpy, cryptography, PyNaCl, msgpack, blake3 and safetensors; it knows no model, and imports
neither `resnet` nor `albert`. Only `btard.swarm` knows a network; it needs the extra `swarm`.
"""

__version__ = "0.2.0"
