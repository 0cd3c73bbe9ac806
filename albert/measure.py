"""Measures an ALBERT on validation data: the same numbers for a coordinator and an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AlbertForPreTraining

from albert.data.batches import NOT_MASKED, Batch
from albert.data.corpus import Corpus
from albert.data.evaluation import evaluation_batches

EXAMPLES, TOGETHER = 256, 16
"""Number of validation examples for measuring a model, and how many of them are one batch."""


def validation_batches(folder: str | Path, examples: int | None = EXAMPLES) -> list[Batch]:
    """The first batches of the validation split of a prepared folder; all of it if `examples` is None.

    Errors: DataError.
    """
    return list(evaluation_batches(Corpus(folder, "validation"), TOGETHER, examples))


@torch.no_grad()
def measure(model: AlbertForPreTraining, batches: Sequence[Batch]) -> dict[str, float]:
    """Numbers by name: `validation_loss` is the training's loss, the sum of the next two.

    `masked_word_loss` and `sentence_order_loss` are means over the batches of a batch's mean cross-entropy, as
    transformers computes it; `masked_word_accuracy` and `sentence_order_accuracy` are shares of all masked words and of
    all examples, in [0, 1]. Without dropout; the model's mode is restored.
    """
    device, training = next(model.parameters()).device, model.training
    losses, of_words, of_order = [], [], []
    right, words, in_order, examples = 0, 0, 0, 0
    model.eval()
    try:
        for inputs in batches:
            placed = {name: tensor.to(device) for name, tensor in inputs.items()}
            said = model(**placed)
            labels, order = placed["labels"], placed["sentence_order_label"]
            losses.append(float(said.loss))
            of_words.append(float(F.cross_entropy(said.prediction_logits.flatten(0, 1), labels.flatten())))
            of_order.append(float(F.cross_entropy(said.sop_logits, order)))
            masked = labels != NOT_MASKED
            right += int((said.prediction_logits.argmax(-1)[masked] == labels[masked]).sum())
            in_order += int((said.sop_logits.argmax(-1) == order).sum())
            words, examples = words + int(masked.sum()), examples + len(order)
    finally:
        model.train(training)
    return {
        "validation_loss": sum(losses) / len(losses),
        "masked_word_loss": sum(of_words) / len(of_words),
        "masked_word_accuracy": right / max(1, words),
        "sentence_order_loss": sum(of_order) / len(of_order),
        "sentence_order_accuracy": in_order / max(1, examples),
    }
