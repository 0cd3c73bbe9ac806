"""Where a program computes."""

from __future__ import annotations

import torch

from btard.harness.typed_yaml import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Errors: ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no GPU; see to its driver, or set device to cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
