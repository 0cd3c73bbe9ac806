"""BTARD: Byzantine-tolerant training without a server (Gorbunov et al., ICML 2022, arXiv 2106.11257).

The library needs torch, numpy, cryptography, PyNaCl, msgpack, blake3 and safetensors; it knows no model and no network,
and imports neither `resnet` nor `albert`.
"""

__version__ = "0.1.0"
