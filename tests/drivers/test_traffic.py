"""Bytes on the wire: tensors as in plain all-reduce, and a remainder that does not grow with the model."""

from __future__ import annotations

import pytest

from scripts.traffic import LIMIT, RESNET18, fit, remainders, sent, tensors


@pytest.mark.parametrize("byzantine", [0, 7])
def test_the_remainder_does_not_depend_on_the_size_of_the_model(byzantine: int) -> None:
    found = []
    for d in (16 * 50, 16 * 500):
        mean, _, workers = sent(16, byzantine, 1, d)
        found.append(mean - tensors(16, workers, d))
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.parametrize(("validators", "byzantine"), [(0, 7), (1, 7), (2, 6)])
def test_sixteen_peers_with_a_resnet_send_hardly_more_than_plain_all_reduce(validators: int, byzantine: int) -> None:
    mean, _, workers = sent(16, byzantine, validators, 16 * 50)
    remainder = mean - tensors(16, workers, 16 * 50)
    assert tensors(16, workers, RESNET18) + remainder <= LIMIT * 8 * RESNET18 * 15 / 16


def test_the_remainder_is_quadratic_in_all_and_linear_per_recipient() -> None:
    rows = remainders([4, 8, 16, 32], 1)
    for name in ("no relays", "most relays"):
        assert fit(rows, name)["largest error"] < 0.05
