"""The network, its flat parameter vector, and its evaluation."""

import pytest
import torch
import torchvision
from torch import nn

from btard.training.vector import bind, flatten, parameter_count, views
from resnet.model import evaluate, resnet18


@pytest.mark.parametrize(("width", "count"), [(64, 11_173_962), (16, 701_466)])
def test_parameter_counts(width: int, count: int) -> None:
    assert parameter_count(resnet18(width)) == count


def test_width_64_is_torchvisions_network_with_another_stem() -> None:
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    model = resnet18(64)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(images), reference.eval()(images))


def test_initial_values_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (flatten(resnet18(4, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(flatten(resnet18(4, seed=generator)), first)
    assert not torch.equal(flatten(resnet18(4, seed=generator)), first), "the generator must advance"


def test_initial_values_have_the_spread_of_pytorchs_own_or_of_he() -> None:
    model = resnet18(32, classes=100)
    weight = model.layer3[1].conv2.weight
    alike = torch.nn.Conv2d(*weight.shape[1::-1], 3).weight
    assert weight.std().item() == pytest.approx(alike.std().item(), rel=0.02)
    assert 0.98 * alike.abs().max() < weight.abs().max() <= (weight.shape[1] * 9) ** -0.5
    he = resnet18(32, init="he").layer3[1].conv2.weight
    assert he.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.02)
    with pytest.raises(ValueError, match="init must be torch or he"):
        resnet18(32, init="xavier")  # type: ignore[arg-type]
    bound = model.fc.in_features**-0.5
    assert 0.98 * bound < model.fc.weight.abs().max() <= bound
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert (model.bn1.running_mean == 0).all() and (model.bn1.running_var == 1).all()


def test_bound_parameters_move_with_the_vector_and_back() -> None:
    model = resnet18(4, classes=3, channels=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    flat = flatten(model)
    bind(model, flat)
    assert all(map(torch.equal, before, model.parameters()))
    flat.zero_()
    assert all((parameter == 0).all() for parameter in model.parameters())
    with torch.no_grad():
        model.fc.bias.fill_(2)
    assert flat.sum() == 6


def test_views_cover_the_vector_once() -> None:
    model = resnet18(4)
    rows = torch.zeros(2, parameter_count(model), dtype=torch.int64)
    for view, parameter in zip(views(model, rows), model.parameters(), strict=True):
        assert view.shape == (2, *parameter.shape)
        view += 1
    assert (rows == 1).all()


@pytest.mark.parametrize(
    "flat", [torch.zeros(5), torch.zeros(44_622, dtype=torch.float64), torch.zeros(2 * 44_622)[::2]]
)
def test_bind_rejects_another_vector(flat: torch.Tensor) -> None:
    model = resnet18(4)
    assert parameter_count(model) == 44_622
    with pytest.raises(ValueError, match="expected a contiguous parameter vector"):
        bind(model, flat)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        resnet18(0)


class _Constant(nn.Module):
    """Says class 1 with logits 0 and 1, and notes its mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def test_evaluate_by_hand_over_uneven_batches() -> None:
    model = _Constant().train()
    labels = torch.tensor([1, 1, 1, 0, 1])
    accuracy, loss = evaluate(model, torch.zeros(5, 1, 2, 2), labels, batch_size=2)
    log_sum = torch.tensor([0.0, 1.0]).logsumexp(0).item()
    assert accuracy == 0.8
    assert loss == pytest.approx(log_sum - 0.8)
    assert model.training


def test_evaluate_needs_samples() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        evaluate(_Constant(), torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64))
