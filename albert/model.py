"""ALBERT with its two heads, and its parameters as one vector."""

from __future__ import annotations

import torch
from transformers import AlbertConfig, AlbertForPreTraining

from albert.config import ModelConfig
from btard.training.randomness import torch_seeded


def make_model(config: ModelConfig, vocab_size: int, sequence_length: int, seed: int) -> AlbertForPreTraining:
    """The model with initial parameters drawn from `seed`, equal on all machines with equal versions of torch."""
    with torch_seeded(seed):
        model = AlbertForPreTraining(_settings(config, vocab_size, sequence_length))
    return model.train()


def outline(config: ModelConfig, vocab_size: int, sequence_length: int) -> AlbertForPreTraining:
    """The model of `make_model` on the meta device: it has shapes, and neither memory nor values."""
    with torch.device("meta"):
        return AlbertForPreTraining(_settings(config, vocab_size, sequence_length))


def _settings(config: ModelConfig, vocab_size: int, sequence_length: int) -> AlbertConfig:
    return AlbertConfig(
        vocab_size=vocab_size,
        embedding_size=config.embedding,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=sequence_length,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        classifier_dropout_prob=config.dropout,
    )


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter of this name: not for biases and layer norms."""
    return not (name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name)
