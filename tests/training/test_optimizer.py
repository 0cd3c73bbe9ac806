"""Any PyTorch optimizer over a vector: PyTorch's own bits, a state that can be handed over, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pytorch_optimizer import Lamb
from torch import nn
from torch.optim import lr_scheduler

import btard
from btard.training.optimizer import VectorOptimizer
from btard.training.vector import views

STEPS = 8


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))


def drawn(d: int, step: int) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(step))


def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    decayed = {"params": [x for x in parameters if x.dim() > 1], "weight_decay": 0.1, "lr": 0.01}
    rest = {"params": [x for x in parameters if x.dim() <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, rest], lr=0.1)


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "class": (torch.optim.SGD, None),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), None),
    "dampening": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    ),
    "groups": (groups, lambda o: lr_scheduler.StepLR(o, 3)),
    "one cycle": (torch.optim.AdamW, lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS + 1)),
    "state from the start": (torch.optim.Adagrad, None),
    "no state like parameters": (torch.optim.NAdam, None),
    "a counter in the groups": (lambda p: Lamb(p, lr=0.01, weight_decay=0.1), None),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_parameters_are_pytorchs_and_a_state_goes_on_elsewhere(name: str) -> None:
    make, schedule = OPTIMIZERS[name]
    model, reference = network(), network()
    ours, theirs = VectorOptimizer(model, make, schedule), make(list(reference.parameters()))
    scheduler = schedule(theirs) if schedule else None
    names = ours.state().keys()
    kept: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(STEPS):
            if step == 3:
                kept = {name: x.clone() for name, x in ours.state().items()}
            gradient = drawn(len(ours.params), step)
            for parameter, piece in zip(reference.parameters(), views(reference, gradient), strict=True):
                parameter.grad = piece.clone()
            assert ours.lr(step) == theirs.param_groups[0]["lr"]
            ours.apply(gradient, step)
            theirs.step()
            if scheduler:
                scheduler.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        # Norms round otherwise where a convolution's weights lie in another order.
        assert torch.allclose(one, other, rtol=1e-5) if name == "a counter in the groups" else torch.equal(one, other)
    assert ours.state().keys() == names and all(x.dim() == 1 for x in ours.state().values())

    late = VectorOptimizer(network(), make, schedule)
    assert {n: x.shape for n, x in late.state().items()} == {n: x.shape for n, x in kept.items()}
    late.load(kept)
    for step in range(3, STEPS):
        late.apply(drawn(len(late.params), step), step)
    assert all(torch.equal(x, ours.state()[name]) for name, x in late.state().items())


def test_a_state_of_before_the_first_step_can_be_gone_back_to() -> None:
    ours = VectorOptimizer(network(), OPTIMIZERS["dampening"][0])
    start = {name: x.clone() for name, x in ours.state().items()}
    ours.apply(drawn(len(ours.params), 0), 0)
    first = ours.params.clone()
    ours.apply(drawn(len(ours.params), 1), 1)
    ours.load(start)
    ours.apply(drawn(len(ours.params), 0), 2)
    assert torch.equal(ours.params, first)


def test_the_learning_rate_goes_on_also_in_steps_without_an_update_and_can_be_asked_for_again() -> None:
    ours = VectorOptimizer(network(), torch.optim.SGD, lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 + step))
    rates = [ours.lr(step) / ours.lr(0) for step in (0, 3, 1, 4)]
    assert rates == [1, 4, 2, 5]


def test_an_optimizer_of_the_models_parameters_and_its_scheduler_can_be_given_as_they_are() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    ours = VectorOptimizer(model, optimizer, scheduler)
    ours.apply(drawn(len(ours.params), 0), 0)
    assert ours.lr(1) == 0.05
    ours.release()
    before = copy.deepcopy(model)
    again = VectorOptimizer(model, optimizer)  # goes on with the moments it has
    assert again.state()["optimizer step"].tolist() == [1.0] * 4
    assert all(torch.equal(x, y) for x, y in zip(before.parameters(), model.parameters(), strict=True))


def test_after_the_run_a_parameter_has_memory_of_its_own() -> None:
    model = network()
    ours = VectorOptimizer(model, torch.optim.SGD)
    assert len({x.untyped_storage().data_ptr() for x in model.parameters()}) == 1
    ours.release()
    assert len({x.untyped_storage().data_ptr() for x in model.parameters()}) == 4
    assert all(x.is_contiguous() for x in model.parameters())


def test_settings_of_optimizer_and_schedule_are_compared() -> None:
    def said(lr: float, steps: int) -> dict[str, str]:
        make: Callable[..., Any] = lambda p: torch.optim.SGD(p, lr=lr)  # noqa: E731
        return VectorOptimizer(network(), make, lambda o: lr_scheduler.CosineAnnealingLR(o, steps)).agreed()

    assert said(0.1, 5) == said(0.1, 5) and said(0.1, 5)["optimizer"].startswith("SGD ")
    assert len({said(lr, steps)["optimizer"] for lr in (0.1, 0.2) for steps in (5, 6)}) == 4


class Drift:
    """Moves every parameter by the learning rate, whatever the gradient is."""

    def __init__(self, d: int) -> None:
        self.params = torch.zeros(d)

    def lr(self, step: int) -> float:
        return 0.5 + step

    def apply(self, gradient: torch.Tensor, step: int) -> None:
        self.params += self.lr(step)

    def state(self) -> dict[str, torch.Tensor]:
        return {"parameters": self.params}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.params.copy_(tensors["parameters"])


def test_an_optimizer_of_ones_own_moves_the_model_that_the_caller_has() -> None:
    model = torch.nn.Linear(3, 1)
    data = [(torch.full((3,), float(i)), torch.tensor([3.0 * i])) for i in range(8)]
    task = btard.TorchTask(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data, 4)
    seen: list[float] = []
    run = btard.simulate(task, optimizer=Drift(4), steps=2, peers=3, on_step=lambda run: seen.append(model.bias.item()))
    assert seen == [0.5, 2.0] and model.weight.tolist() == [[2.0] * 3] and run.lrs == [0.5, 1.5]
    with pytest.raises(ValueError, match=r"the optimizer's params have shape \[5\], the model trains 4"):
        btard.simulate(task, optimizer=Drift(5), steps=1, peers=3)
    with pytest.raises(ValueError, match="a scheduler is for a torch optimizer"):
        btard.simulate(task, optimizer=Drift(4), scheduler=lambda o: lr_scheduler.StepLR(o, 1), steps=1, peers=3)
    with pytest.raises(
        ValueError, match=r"there is no learning rate for step 9 of steps=10: .*total steps is 8"
    ) as said:
        btard.simulate(
            task,
            optimizer=torch.optim.SGD,
            scheduler=lambda o: lr_scheduler.OneCycleLR(o, 0.1, 8),
            steps=10,
            peers=3,
        )
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("make", "schedule", "error", "message"),
    [
        (
            "adam",
            None,
            TypeError,
            "optimizer must be a torch optimizer, or a class or function that .* got str",
        ),
        (lambda p: p, None, TypeError, r"optimizer\(parameters\) must return a torch optimizer, got list"),
        (lambda p: torch.optim.SGD(p[1:]), None, ValueError, "leaves out 1 trained parameters, such as 0.weight"),
        (lambda p: torch.optim.SGD(network().parameters()), None, ValueError, "are not the task's model's"),
        (torch.optim.LBFGS, None, ValueError, "LBFGS cannot move the parameters by a gradient that is given: "),
        (torch.optim.SparseAdam, None, ValueError, "SparseAdam cannot move the parameters"),
        (torch.optim.SGD, lr_scheduler.ReduceLROnPlateau, ValueError, "ReduceLROnPlateau goes by a loss"),
        (torch.optim.SGD, lambda o: 3, TypeError, "scheduler must be a learning-rate scheduler, or make one, got int"),
        (
            torch.optim.SGD,
            lambda o: lr_scheduler.StepLR(torch.optim.SGD(network().parameters()), 1),
            ValueError,
            "the scheduler is of another optimizer",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line(make: Any, schedule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        VectorOptimizer(network(), make, schedule)
    assert "\n" not in str(raised.value)
