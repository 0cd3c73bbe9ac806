"""The gradient of ALBERT-large: its time and memory, and whether it repeats its bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from albert.config import ModelConfig
from albert.data.corpus import Corpus
from albert.model import make_model
from albert.task import AlbertTask
from btard.protocol.effects import Compute
from btard.protocol.hashing import digest, stream
from btard.training.vector import flatten
from scripts.benchmarks.measure import interleaved, release
from scripts.gpu_checks.rows import NO_TIME, Row, Setting

SEQUENCES, AT_ONCE = 8, 4
LOSS_SCALE = 1024.0
TINY: dict[str, int] = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "embedding": 16}
SPECIAL = ("pad", "unk", "cls", "sep", "mask")


class RandomWords(Corpus):
    """Sequences of random words, without files: what they say does not matter here."""

    def __init__(self, vocab_size: int, sequence_length: int) -> None:
        self.vocab_size, self.sequence_length = vocab_size, sequence_length
        self.special_tokens = {name: token for token, name in enumerate(SPECIAL)}
        self.is_special = np.arange(vocab_size) < len(SPECIAL)
        self.ordinary = np.flatnonzero(~self.is_special)

    def __len__(self) -> int:
        return 1000

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        length = self.sequence_length - 3
        words = stream("random words", index).integers(len(SPECIAL), self.vocab_size, length, dtype=np.int32)
        return words[: length // 2], words[length // 2 :]


def rows(setting: Setting) -> Iterator[Row]:
    precisions = ("float32",) if setting.device == "cpu" else ("float32", "float16")
    for precision, share in setting.shares(precisions):
        yield _gradient(precision, setting) if share.left > 0 else Row(precision, NO_TIME)


def _gradient(precision: str, setting: Setting) -> Row:
    release(setting.device)
    words, vocabulary, sizes = (64, 200, TINY) if setting.tiny else (512, 30_000, {})
    model: torch.nn.Module = make_model(ModelConfig(**sizes), vocabulary, words, 0)
    half = precision == "float16"
    task = AlbertTask(
        model.to(setting.device),  # type: ignore[arg-type]
        RandomWords(vocabulary, words),
        SEQUENCES,
        AT_ONCE,
        half=half,
        loss_scale=LOSS_SCALE if half else 1.0,
    )
    params, request = flatten(model).clone(), Compute(0, 0, digest("albert"))
    first, second = (torch.empty(1, task.d, device=setting.device) for _ in range(2))
    task.gradients(params, [request], first)
    times = interleaved({"again": lambda: task.gradients(params, [request], second)}, 3, setting.device, warmup=0)[
        "again"
    ]
    same = torch.equal(first.view(torch.int32), second.view(torch.int32))
    finite = bool(torch.isfinite(first).all())
    numbers: dict[str, Any] = {"parameters": task.d, "sequences": SEQUENCES, "tokens": words, "seconds": times}
    said = f"{1e3 * sorted(times)[1]:.0f} ms; {'the same' if same else 'other'} bits again"
    said += "" if finite else "; not finite"
    if setting.device != "cpu":
        numbers["peak bytes"] = torch.cuda.max_memory_allocated()
        said += f"; peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
    return Row(f"{task.d:,} parameters, {precision}, {SEQUENCES} x {words} tokens", said, same and finite, numbers)
