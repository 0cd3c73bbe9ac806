"""Gradients that follow from a public seed, buffers that stay with their peer, and what is refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from btard import Compute, TorchTask
from btard.protocol.effects import Purpose
from btard.task import TooLate
from btard.training.vector import flatten, parameter_count, views
from tests.training import model

SEED = b"s" * 32


def gradient(task: TorchTask, seed: bytes = SEED, *, peer: int = 0, **request: Any) -> Tensor:
    out = torch.empty(1, task.d)
    task.gradients(flatten(task.model), [Compute(0, peer, seed, **request)], out)
    return out[0]


class Linear(nn.Module):
    """<w, x>, so that a gradient is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def test_the_gradient_is_that_of_the_mean_loss_of_the_samples_drawn() -> None:
    x = torch.arange(30.0).view(10, 3)
    task = TorchTask(Linear(), lambda m, batch: m(batch[0]).mean(), TensorDataset(x), batch_size=10)
    assert torch.allclose(gradient(task), x.mean(0))  # all ten samples, whatever their order
    assert task.loss == pytest.approx(float((x @ torch.tensor([2.0, -1.0, 0.5])).mean()))
    few = TorchTask(Linear(), lambda m, batch: m(batch[0]).mean(), TensorDataset(x), batch_size=1)
    drawn = {tuple(gradient(few, bytes([i]) * 32).tolist()) for i in range(60)}
    assert drawn == {tuple(row.tolist()) for row in x}


def test_a_row_depends_on_its_own_request_alone_to_the_bit() -> None:
    task, params = model.task(), flatten(model.network())
    requests = [Compute(0, peer, bytes([peer]) * 32) for peer in range(3)]
    together, out = torch.empty(3, task.d), torch.empty(1, task.d)
    task.gradients(params, requests, together)
    for request, row in zip(reversed(requests), reversed(together), strict=True):
        torch.rand(7)
        task.gradients(params, [request], out)
        assert torch.equal(out[0], row)
    other = model.task(seed=1)
    other.gradients(params, requests[:1], out)
    assert not torch.equal(out[0], together[0])


def test_nobody_else_notices_that_random_numbers_were_seeded() -> None:
    task = model.task()
    gradient(task)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    gradient(task)
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_frozen_parameters_are_left_out_and_the_given_model_is_not_touched() -> None:
    own = model.network()
    before = {name: x.clone() for name, x in own.state_dict().items()}
    task = TorchTask(own, model.loss, model.dataset(), 8)
    assert task.d == sum(x.numel() for x in own.parameters()) - (10 * 8 + 8)
    gradient(task)
    assert all(torch.equal(x, before[name]) for name, x in own.state_dict().items())
    assert all(x.grad is None for x in own.parameters())


def test_running_statistics_are_those_of_a_peers_own_batches() -> None:
    """As torch's BatchNorm moves them, and no validation moves anybody's."""
    task = model.task()
    gradient(task, peer=1)
    mine = task.local_state()["buffers/1/1.running_mean"].clone()
    gradient(task, peer=2)
    gradient(task, peer=1, purpose=Purpose.VALIDATE)
    state = task.local_state()
    assert torch.equal(state["buffers/1/1.running_mean"], mine) and mine.abs().sum() > 0
    assert torch.equal(state["buffers/2/1.running_mean"], mine)  # the same batch, once
    assert state["buffers/1/1.num_batches_tracked"] == 1
    gradient(task, peer=1)
    # 0.9 mine + 0.1 batch, where mine was 0.1 batch
    assert torch.allclose(task.local_state()["buffers/1/1.running_mean"], mine * 1.9)
    task.load_local_state(state)
    task.write_buffers(1)
    assert torch.equal(task.model[1].running_mean, mine)


def test_poison_is_for_those_who_ask_for_it() -> None:
    task = model.task()
    assert not torch.equal(gradient(task), gradient(task, flip_labels=True))
    with pytest.raises(ValueError, match="this attack flips labels: give TorchTask poison="):
        gradient(model.task(poison=None), flip_labels=True)


def test_public_losses_tell_a_good_state_from_a_bad_one_and_do_not_move_buffers() -> None:
    task, good = model.task(), flatten(model.network())
    gradient(task)
    before = task.local_state()
    bad = good + 5 * torch.randn(task.d, generator=torch.Generator().manual_seed(0))
    one, other = task.public_losses(good, SEED), task.public_losses(bad, SEED)
    assert one.shape == (16,) and one.dtype == torch.float64
    assert (other - one).mean() > 3 * (other - one).std() / 4
    assert torch.equal(task.public_losses(good, SEED), one)
    assert all(torch.equal(x, before[name]) for name, x in task.local_state().items())
    assert not torch.equal(task.public_losses(good, b"t" * 32), one)


def test_what_peers_compare_tells_other_data_and_other_frozen_layers_apart() -> None:
    same, agreed = model.task().agreed(), model.task().agreed()
    assert same == agreed
    other = model.network()
    other[0].bias.data[0] += 1
    assert TorchTask(other, model.loss, model.dataset(), 8).agreed()["model"] != agreed["model"]
    shorter = TorchTask(model.network(), model.loss, model.dataset(95), 8).agreed()
    assert shorter["data"] != agreed["data"] and shorter["model"] == agreed["model"]


def test_a_convolutions_weights_are_where_the_vector_has_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 1))
    data = [(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(i)),) for i in range(6)]
    task = TorchTask(net, lambda m, batch: m(batch[0]).square().mean(), data, 6)
    row = gradient(task)
    x = torch.stack([sample[0] for sample in data])
    net(x).square().mean().backward()
    for piece, parameter in zip(views(net, row), net.parameters(), strict=True):
        assert torch.allclose(piece, parameter.grad, atol=1e-6)
    assert parameter_count(net) == len(row)


@pytest.mark.parametrize("together", [3, 8])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(together: int) -> None:
    net = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 2))
    whole = TorchTask(net, model.loss, model.dataset(), 8)
    pieces = TorchTask(net, model.loss, model.dataset(), 8, micro_batch=together)
    assert torch.allclose(gradient(pieces), gradient(whole), atol=1e-7)
    assert pieces.loss == pytest.approx(whole.loss)


def test_it_may_be_too_late_between_two_micro_batches() -> None:
    task, asked = model.task(micro_batch=4), []

    def late() -> bool:
        asked.append(len(asked))
        return len(asked) > 1

    with pytest.raises(TooLate):
        task.gradients(flatten(task.model), [Compute(0, 0, SEED)], torch.empty(1, task.d), too_late=late)
    assert asked == [0, 1]


class Drawing(Dataset):
    """A dataset that augments: by torch's generator, or by one of its own."""

    def __init__(self, own: np.random.Generator | None = None) -> None:
        self.own = own

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.rand(3) if self.own is None else torch.from_numpy(self.own.random(3)).float()
        return noise + random.random() + np.random.rand() + index  # noqa: NPY002


def test_augmentation_follows_from_the_seed() -> None:
    task = TorchTask(Linear(), lambda m, batch: m(batch).mean(), Drawing(), 4)
    task.check()
    assert torch.equal(gradient(task), gradient(task)) and not torch.equal(gradient(task), gradient(task, b"u" * 32))


class OwnNoise(nn.Module):
    """Multiplies by numbers of a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.generator = nn.Parameter(torch.ones(3)), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w * float(self.generator.random())


class Counting(nn.Module):
    """Multiplies by a buffer that it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x @ self.w * self.calls


X = TensorDataset(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))


def mean(module: nn.Module, batch: Any) -> Tensor:
    return module(batch[0]).mean()


def made(net: Any = None, loss: Any = mean, data: Any = X, batch_size: Any = 4, **more: Any) -> TorchTask:
    return TorchTask(net or Linear(), loss, data, batch_size, **more)


def frozen() -> nn.Module:
    return Linear().requires_grad_(False)


def sparse() -> TorchTask:
    net = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    return made(net, data=[(torch.tensor(i % 5),) for i in range(8)])


OTHER = Linear()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: made("net"), TypeError, "model must be a torch.nn.Module, got str"),
        (lambda: made(frozen()), ValueError, "the model has no parameter to train"),
        (lambda: made(Linear().double()), ValueError, r"parameter w is torch.float64, peers exchange float32"),
        (lambda: made(nn.LazyLinear(1)), ValueError, "parameter weight has no shape yet: run the model once"),
        (
            lambda: made(micro_batch=0),
            ValueError,
            "micro_batch must be a number of samples > 0, or None .* got 0",
        ),
        (lambda: made(loss=3), TypeError, "loss must be a function, got int"),
        (lambda: made(poison=3), TypeError, "poison must be a function, got int"),
        (lambda: made(data=DataLoader(X)), TypeError, "got a DataLoader: give its .dataset"),
        (lambda: made(data=(X, X)), TypeError, "got tuple: give tensors .* as torch.utils.data.TensorDataset"),
        (lambda: made(data={"x": X}), TypeError, "got dict: give tensors of inputs and labels as"),
        (lambda: made(data=iter([])), TypeError, "a dataset with a length and an index, got list_iterator"),
        (lambda: made(batch_size=21), ValueError, "between 1 and the 20 samples of the data, got 21"),
        (lambda: made(batch_size=0), ValueError, "between 1 and the 20 samples of the data, got 0"),
        (lambda: made(loss=lambda m, b: 1.0), TypeError, "must return a tensor with one number, got float"),
        (lambda: made(loss=lambda m, b: m(b[0])), ValueError, r"got shape \[4\]: take its .mean\(\)"),
        (lambda: made(loss=lambda m, b: OTHER(b[0]).mean()), ValueError, "use this model in it, for peers compute on"),
        (lambda: made(loss=lambda m, b: b[0].mean()), ValueError, "does not depend on the parameters of the model"),
        (sparse, ValueError, "the gradient of 0.weight is sparse, peers exchange dense vectors"),
        (lambda: made(OwnNoise()), ValueError, "the same request computed twice gives different gradients"),
        (lambda: made(Counting()), ValueError, r"depends on buffers that training moves \(calls\)"),
        (
            lambda: made(loss=lambda m, b: m(b).mean(), data=Drawing(np.random.default_rng(0))),
            ValueError,
            "other data come from the same request",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    make: Callable[[], TorchTask], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        make().check()
    assert "\n" not in str(raised.value)


def test_gradients_that_differ_are_no_mistake_where_distances_decide() -> None:
    task = made(OwnNoise())
    task.check(exact=False)
    gradient(task)
    with pytest.raises(ValueError, match="the same request computed twice"):
        task.check()
