"""From a peer's bytes to what answers an effect, for all drivers that have a wire."""

from __future__ import annotations

from typing import Any

import torch

from btard.protocol.effects import Broadcast, Compare, Effect, Exchange
from btard.protocol.envelope import decode_digest, decode_items, decode_signed
from btard.protocol.messages import Packet, Relayed
from btard.protocol.wire import Malformed


def decode(effect: Effect, body: bytearray | memoryview, device: torch.device) -> Any:
    """What one sender's `body` says in answer to `effect`: a broadcast, a digest, or items with tensors on `device`.

    Tensors on the CPU are views of `body`. Errors: Malformed, also for more than the effect's limit.
    """
    if isinstance(effect, Broadcast):
        message = decode_signed(memoryview(body), effect.limit)
        if message.nbytes > effect.limit:
            raise Malformed(f"broadcast: at most {effect.limit} bytes are allowed")
        return message
    if isinstance(effect, Compare):
        return decode_digest(memoryview(body))
    if isinstance(effect, Exchange):
        items = decode_items(body, effect.limit)
        return items if device.type == "cpu" else tuple(_on(device, item) for item in items)
    raise TypeError(f"nothing is sent for {type(effect).__name__}")


def _on(device: torch.device, item: Packet | Relayed) -> Packet | Relayed:
    """The item with its tensor, if it has one, on `device`."""
    if isinstance(item, Packet) and isinstance(item.body, torch.Tensor):
        return Packet(item.kind, item.sender, item.step, item.part, item.body.to(device), item.signature)
    return item
