"""Rows as a matrix: seen where they lie if they are equally spaced pieces of one storage, copied otherwise."""

import pytest
import torch

from btard.aggregation import stack_rows

X = torch.arange(60.0).view(6, 10)


@pytest.mark.parametrize(
    "rows",
    [
        list(X),
        [row[3:7] for row in X],
        [row[3:7] for row in X[1::2]],
        list(X.view(-1)[:12].split(4)),
        [X[2, 4:]],
    ],
    ids=["rows", "columns", "every other row", "neighbours", "one"],
)
def test_equally_spaced_rows_are_not_copied(rows: list[torch.Tensor]) -> None:
    matrix = stack_rows(rows)
    assert torch.equal(matrix, torch.stack(rows))
    assert matrix.data_ptr() == rows[0].data_ptr()


@pytest.mark.parametrize(
    "rows",
    [
        [X[0], X[1], X[3]],
        [X[1], X[0]],
        [X[0], X[0]],
        [X[0, :4], X[0, 2:6]],
        [X[0], X[1].clone(), X[2]],
        [X[0], X[1] + 1],
        list(X.t()),
        [X[0, :0], X[1, :0]],
    ],
    ids=["gap", "order", "same", "overlap", "copy between", "other storage", "strided", "empty"],
)
def test_other_rows_are_copied(rows: list[torch.Tensor]) -> None:
    matrix = stack_rows(rows)
    assert torch.equal(matrix, torch.stack(rows))
    if matrix.numel():
        matrix += 1
        assert not torch.equal(matrix[0], rows[0]), "the rows themselves are left alone"


def test_what_does_not_fit_is_what_torch_says_of_it() -> None:
    with pytest.raises(RuntimeError):
        stack_rows([X[0, :4], X[1, :5]])
    with pytest.raises(RuntimeError, match="non-empty"):
        stack_rows([])
    mixed = stack_rows([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])
    assert mixed.dtype == torch.float64
