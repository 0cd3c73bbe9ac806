"""Steps of any driver in one process, with plain gradient descent."""

from __future__ import annotations

from typing import Any

import torch


def advance(driver: Any, params: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[str]]:
    """The parameters after so many steps from `params` [d], and the lines that these added to the ledger."""
    lines: list[str] = []
    for _ in range(steps):
        result = driver.step(params)
        lines += [entry.to_json() for entry in result.removed]
        params = params - 0.1 * result.gradient
    return params, lines
