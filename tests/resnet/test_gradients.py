"""The gradients of a cohort against plain autograd, finite differences and each other."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btard.training.vector import flatten, views
from resnet import folded
from resnet.batchnorm import RunningStatistics, Statistics, norm_layers
from resnet.gradients import FOLDED_BELOW, CohortGradients, CohortResult
from resnet.model import resnet18

PEERS, BATCH = 5, 4


def cohort(size: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(PEERS, BATCH, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(0, 10, (PEERS, BATCH), generator=generator)


def tiny(dtype: torch.dtype = torch.float32, width: int = 4) -> nn.Module:
    model = resnet18(width, seed=1).to(dtype)
    with torch.no_grad():  # Batch norms at 1 and 0 would hide mistakes in their gradients.
        for layer in norm_layers(model):
            layer.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
            layer.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(3))
    return model


def naive(model: nn.Module, images: Tensor, labels: Tensor) -> CohortResult:
    """One peer after the other by plain autograd, with torch's own batch normalisation and its running statistics."""
    rows, losses, means, variances = [], [], [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As fast for so little work, and much faster while others use the cores.
    for samples, target in zip(images, labels, strict=True):
        for layer in norm_layers(model):
            layer.reset_running_stats()
        loss = F.cross_entropy(model(samples), target)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        row = torch.empty(sum(g.numel() for g in gradients), dtype=loss.dtype)
        for view, gradient in zip(views(model, row), gradients, strict=True):
            view.copy_(gradient)
        rows.append(row)
        losses.append(loss.detach())
        # After one step from 0 and 1 with momentum 0.1.
        means.append(torch.cat([layer.running_mean / 0.1 for layer in norm_layers(model)]))
        variances.append(torch.cat([(layer.running_var - 0.9) / 0.1 for layer in norm_layers(model)]))
    torch.set_num_threads(threads)
    return CohortResult(torch.stack(rows), torch.stack(losses), Statistics(torch.stack(means), torch.stack(variances)))


def assert_results_close(got: CohortResult, want: CohortResult, tolerance: float) -> None:
    error = (got.gradients - want.gradients).norm(dim=1) / want.gradients.norm(dim=1)
    # The median: in float32 a ReLU at zero may open in one computation and not in the other, see CohortGradients.
    assert error.median() < tolerance, error
    pairs = (
        (got.losses, want.losses),
        (got.statistics.means, want.statistics.means),
        (got.statistics.variances, want.statistics.variances),
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def every_strategy(model: nn.Module) -> dict[str, CohortGradients]:
    threads, fold = CohortGradients(model, mode="per_peer"), CohortGradients(model, mode="batched")
    images = cohort()[0]
    assert (threads.strategy(images), fold.strategy(images)) == ("threads", "folded")
    return {"threads": threads, "folded": fold}


@pytest.mark.parametrize("strategy", ["threads", "folded"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_agrees_with_plain_autograd(strategy: str, dtype: torch.dtype, tolerance: float) -> None:
    model = tiny(dtype)
    images, labels = cohort(dtype=dtype)
    got = every_strategy(model)[strategy](flatten(model), images, labels)
    want = naive(model, images, labels)
    assert_results_close(got, want, tolerance)
    if dtype == torch.float64:
        torch.testing.assert_close(got.gradients, want.gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("strategy", ["threads", "folded"])
def test_agrees_with_finite_differences_of_its_losses(strategy: str) -> None:
    model = tiny(torch.float64)
    images, labels = cohort(dtype=torch.float64)
    compute = every_strategy(model)[strategy]
    params = flatten(model)
    result = compute(params, images, labels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(len(params), generator=generator, dtype=torch.float64)
        step = 1e-8  # So small that hardly a ReLU changes its side.
        above = compute(params + step * direction, images, labels).losses
        below = compute(params - step * direction, images, labels).losses
        torch.testing.assert_close((above - below) / (2 * step), result.gradients @ direction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_both_weight_gradients_of_the_folded_convolution_agree(stride: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = folded._PeerConv2d(nn.Conv2d(3, 6, kernel, stride, kernel // 2, bias=False))
    layer.peers = PEERS
    inputs = torch.randn(BATCH * PEERS, 3, 7, 8, generator=generator)
    weight = layer.weight.detach()
    grad = torch.randn(F.conv2d(inputs, weight, None, stride, kernel // 2).shape, generator=generator)
    results = []
    for method in (folded._by_grouped_convolution, folded._by_matrix_product):
        rows = torch.zeros(PEERS, 6, kernel, kernel, 3)
        layer.weight_sink = rows.movedim(-1, 2)
        method(inputs, grad, weight, layer)
        results.append(rows)
    assert results[0].abs().min() > 0
    torch.testing.assert_close(results[0], results[1])


def test_per_peer_rows_do_not_depend_on_company_order_or_workers() -> None:
    model = tiny(width=8)
    images, labels = cohort()
    params = flatten(model)
    whole = CohortGradients(model, workers=2)(params, images, labels)
    for workers in (1, 3):
        other = CohortGradients(model, workers=workers)(params, images, labels)
        assert torch.equal(whole.gradients, other.gradients)
        assert torch.equal(whole.statistics.variances, other.statistics.variances)
    order = torch.tensor([3, 0])
    some = CohortGradients(model)(params, images[order], labels[order])
    assert torch.equal(some.gradients, whole.gradients[order])
    assert torch.equal(some.losses, whole.losses[order])
    assert torch.equal(some.statistics.means, whole.statistics.means[order])
    lone = CohortGradients(model)(params, images[4:].clone(), labels[4:].clone())
    assert torch.equal(lone.gradients[0], whole.gradients[4])


LONE_PEER = """
import hashlib, torch
from tests.resnet.test_gradients import cohort, tiny, flatten, CohortGradients
images, labels = cohort()
model = tiny(width=8)
result = CohortGradients(model)(flatten(model), images[2:3], labels[2:3])
print(hashlib.sha256(result.gradients[0].numpy().tobytes()).hexdigest())
"""


def test_per_peer_rows_are_the_same_in_another_process_with_another_number_of_threads() -> None:
    model = tiny(width=8)
    images, labels = cohort()
    row = CohortGradients(model)(flatten(model), images, labels).gradients[2]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    lone = subprocess.run([sys.executable, "-c", LONE_PEER], env=env, capture_output=True, text=True, timeout=110)
    assert lone.stdout.strip() == hashlib.sha256(row.numpy().tobytes()).hexdigest(), lone.stderr


@pytest.mark.parametrize("mode", ["per_peer", "batched"])
def test_repeated_calls_give_the_same_bits_and_change_nothing_else(mode: str) -> None:
    model = tiny()
    images, labels = cohort()
    params = flatten(model)
    before, state, threads = params.clone(), torch.get_rng_state(), torch.get_num_threads()
    compute = CohortGradients(model, mode=mode)
    first = compute(params, images, labels)
    again = compute(params, images, labels)
    assert torch.equal(first.gradients, again.gradients) and first.gradients is not again.gradients
    assert torch.equal(params, before) and torch.equal(flatten(model), before)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert all(parameter.grad is None for parameter in model.parameters())
    compute.close()
    assert torch.equal(compute(params, images, labels).gradients, first.gradients), "works again after close"


@pytest.mark.parametrize("mode", ["per_peer", "batched"])
def test_writes_into_the_given_rows(mode: str) -> None:
    model = tiny()
    images, labels = cohort()
    params = flatten(model)
    wide = torch.full((PEERS, len(params) + 3), 7.0)
    compute = CohortGradients(model, mode=mode)
    result = compute(params, images, labels, wide[:, 1:-2])
    assert result.gradients.data_ptr() == wide[:, 1:].data_ptr()
    assert torch.equal(wide[:, 1:-2], compute(params, images, labels).gradients)
    assert (wide[:, :1] == 7).all() and (wide[:, -2:] == 7).all()


@pytest.mark.parametrize("mode", ["per_peer", "batched"])
def test_recovers_from_parameters_that_are_not_finite(mode: str) -> None:
    model = tiny()
    images, labels = cohort()
    params = flatten(model)
    compute = CohortGradients(model, mode=mode)
    good = compute(params, images, labels)
    bad = compute(torch.full_like(params, float("nan")), images, labels)
    assert bad.losses.isnan().all() and bad.statistics.means.isnan().any()
    again = compute(params, images, labels)
    assert torch.equal(again.gradients, good.gradients)
    assert torch.equal(again.statistics.means, good.statistics.means)


def test_batched_takes_threads_for_larger_images() -> None:
    compute = CohortGradients(resnet18(16), mode="batched")
    assert compute.strategy(torch.empty(1, 8, 3, 32, 32)) == "threads"
    assert compute.strategy(torch.empty(1, 1, 1, 1, FOLDED_BELOW // 16)) == "threads"
    assert compute.strategy(torch.empty(1, 1, 1, 1, FOLDED_BELOW // 16 - 1)) == "folded"


@pytest.mark.parametrize("mode", ["per_peer", "batched"])
def test_inputs_that_do_not_fit(mode: str) -> None:
    model = tiny()
    images, labels = cohort()
    params = flatten(model)
    compute = CohortGradients(model, mode=mode)
    cases = {
        "expected parameters": (params[1:], images, labels, None),
        "expected images": (params, images.double(), labels, None),
        "expected images .*P >= 1": (params, images[:0], labels[:0], None),
        "expected labels": (params, images, labels[:, 1:], None),
        "expected out": (params, images, labels, torch.empty(PEERS, len(params)).t().contiguous().t()),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            compute(*arguments)
    with pytest.raises(IndexError):  # A worker's exception arrives here.
        compute(params, images, labels + 10)
    compute(params, images, labels)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="mode must be per_peer or batched, got 'fast'"):
        CohortGradients(tiny(), mode="fast")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        CohortGradients(tiny(), workers=0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.PReLU())
    with pytest.raises(TypeError, match="expected Conv2d, BatchNorm2d and Linear layers"):
        folded.FoldedNetwork(model, flatten(model))


def test_running_statistics_follow_torchs_own() -> None:
    model = tiny()
    images, labels = cohort()
    running = RunningStatistics(model, peers=7)
    compute = CohortGradients(model)
    peers = [6, 0, 2, 5, 3]
    for _ in range(3):
        running.update(peers, compute(flatten(model), images, labels).statistics)
    with torch.no_grad():
        for _ in range(3):
            model(images[3])
    evaluated = tiny()
    running.load_into(evaluated, 5)
    for got, want in zip(norm_layers(evaluated), norm_layers(model), strict=True):
        torch.testing.assert_close(got.running_mean, want.running_mean)
        torch.testing.assert_close(got.running_var, want.running_var)
    assert (running.means[[1, 4]] == 0).all() and (running.variances[[1, 4]] == 1).all(), "peers that did not train"


def test_running_statistics_survive_a_checkpoint() -> None:
    model = tiny()
    images, labels = cohort()
    running, restored = RunningStatistics(model, PEERS), RunningStatistics(model, PEERS)
    running.update(range(PEERS), CohortGradients(model)(flatten(model), images, labels).statistics)
    restored.load_state_dict(running.state_dict())
    assert torch.equal(restored.means, running.means) and torch.equal(restored.variances, running.variances)
    assert restored.means.data_ptr() != running.means.data_ptr()
    with pytest.raises(ValueError, match=r"expected batch norm variances of shape .* got nothing"):
        restored.load_state_dict({"means": running.means})
    with pytest.raises(ValueError, match="expected statistics of 2 peers, got 1 rows"):
        running.update([0, 1], Statistics(running.means[:1], running.variances[:1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["per_peer", "batched"])
def test_cuda_agrees_with_the_cpu(mode: str) -> None:
    model = tiny(torch.float64)
    images, labels = cohort(dtype=torch.float64)
    want = naive(model, images, labels)
    model = model.cuda()
    got = CohortGradients(model, mode=mode)(flatten(model), images.cuda(), labels.cuda())
    torch.testing.assert_close(got.gradients.cpu(), want.gradients, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got.statistics.variances.cpu(), want.statistics.variances)
