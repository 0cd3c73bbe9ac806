"""All peers' samples through one network at once, with weight gradients and batch statistics per peer.

The samples of P peers are interleaved, sample b of peer p at position b * P + p, so that activations [B * P, C, H, W]
are, without a copy, also [B, P * C, H, W]: in this view torch's own batch normalisation normalises every peer by its
own samples. Convolutions and linear layers have one weight for everybody; their backward takes the gradient of the
input for the whole batch and that of the weight peer by peer, as one batched matrix product written into the result.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btard.training.vector import bind, views
from resnet.batchnorm import Statistics


class FoldedNetwork:
    """A copy of a network of Conv2d, BatchNorm2d and Linear layers that works on a folded cohort.

    It shares the parameters `flat` [d]. Raises TypeError if another kind of layer has parameters or statistics.
    """

    def __init__(self, model: nn.Module, flat: Tensor) -> None:
        self._model = copy.deepcopy(model).train().requires_grad_(True)
        bind(self._model, flat)
        self._order = list(self._model.parameters())  # Before the replacement, which may change the order.
        self._shapes = model
        self._layers = _replace_layers(self._model)

    def compute(self, images: Tensor, labels: Tensor, out: Tensor, losses: Tensor, statistics: Statistics) -> None:
        """Fill out [P, d], losses [P] and statistics [P, S] for images [P, B, C, H, W] and labels [P, B]."""
        peers, batch = labels.shape
        sinks = dict(zip(map(id, self._order), views(self._shapes, out), strict=True))
        for layer in self._layers:
            layer.prepare(peers, sinks)
        with torch.enable_grad():
            logits = self._model(images.transpose(0, 1).reshape(batch * peers, *images.shape[2:]))
            loss = F.cross_entropy(logits, labels.t().reshape(-1), reduction="none").view(batch, peers).mean(0)
            loss.sum().backward()
        losses.copy_(loss.detach())
        start = 0
        for layer in self._layers:
            if isinstance(layer, _PeerBatchNorm):
                start = layer.collect(statistics, start)


class _PeerLayer(nn.Module):
    """A layer whose parameters have a gradient per peer."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.BatchNorm2d | nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.peers = 0
        self.weight_sink: Tensor
        self.bias_sink: Tensor | None

    def prepare(self, peers: int, sinks: dict[int, Tensor]) -> None:
        """Set the number of peers and the place for the gradients [P, *shape] of this layer's parameters."""
        self.peers = peers
        self.weight_sink = sinks[id(self.weight)]
        self.bias_sink = None if self.bias is None else sinks[id(self.bias)]


class _PeerConv2d(_PeerLayer):
    def __init__(self, layer: nn.Conv2d) -> None:
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros" and layer.bias is None
        if not plain or isinstance(layer.padding, str):
            raise TypeError(f"expected a plain convolution without bias, groups or dilation, got {layer}")
        super().__init__(layer)
        self.stride, self.padding = layer.stride, (int(layer.padding[0]), int(layer.padding[1]))

    def forward(self, inputs: Tensor) -> Tensor:
        return _Convolution.apply(inputs, self.weight, self)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, layer: _PeerConv2d) -> Tensor:
        # The fold needs NCHW activations; a channels_last weight would make the output channels_last.
        weight = weight.contiguous()
        ctx.save_for_backward(inputs, weight)
        ctx.layer = layer
        return F.conv2d(inputs, weight, None, layer.stride, layer.padding).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        layer = ctx.layer
        grad = grad.contiguous()
        weight_gradients = _by_matrix_product if grad.is_cuda else _by_grouped_convolution
        weight_gradients(inputs, grad, weight, layer)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        wanted = (True, False, False)
        return _convolution_backward(grad, inputs, weight, layer, 1, wanted)[0], None, None


def _convolution_backward(
    grad: Tensor, inputs: Tensor, weight: Tensor, layer: _PeerConv2d, groups: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's gradients of (input, weight, bias), as far as requested."""
    backward = torch.ops.aten.convolution_backward
    return backward(grad, inputs, weight, None, layer.stride, layer.padding, (1, 1), False, (0, 0), groups, wanted)


def _by_grouped_convolution(inputs: Tensor, grad: Tensor, weight: Tensor, layer: _PeerConv2d) -> None:
    """Write the weight gradient of each peer, as that of a convolution with a group per peer. Faster on CPUs."""
    folded = [tensor.view(-1, layer.peers * tensor.shape[1], *tensor.shape[2:]) for tensor in (grad, inputs)]
    weights = weight.expand(layer.peers, *weight.shape).flatten(0, 1)
    wanted = (False, True, False)
    gradient = _convolution_backward(folded[0], folded[1], weights, layer, layer.peers, wanted)[1]
    layer.weight_sink.copy_(gradient.unflatten(0, (layer.peers, -1)))


def _by_matrix_product(inputs: Tensor, grad: Tensor, weight: Tensor, layer: _PeerConv2d) -> None:
    """Write the weight gradient of each peer, as one batched product of output gradients and unfolded inputs.

    For accelerators: one large deterministic kernel. The unfolded inputs take height * width of the kernel as much
    memory as the inputs.
    """
    (down, right), (above, left) = layer.stride, layer.padding
    padded = F.pad(inputs, (left, left, above, above)) if above or left else inputs
    windows = padded.unfold(2, weight.shape[2], down).unfold(3, weight.shape[3], right)  # [B * P, C, H, W, kh, kw]
    columns = windows.unflatten(0, (-1, layer.peers)).permute(1, 0, 3, 4, 5, 6, 2).flatten(4).flatten(1, 3)
    rows = grad.unflatten(0, (-1, layer.peers)).permute(1, 2, 0, 3, 4).flatten(2)
    # The vector keeps weights as [out, kh, kw, in], the order of the columns: the product lands in place.
    torch.bmm(rows, columns, out=layer.weight_sink.permute(0, 1, 3, 4, 2).flatten(2))


class _PeerLinear(_PeerLayer):
    def forward(self, inputs: Tensor) -> Tensor:
        return _Linear.apply(inputs, self.weight, self.bias, self)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: _PeerLinear) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.layer = layer
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        layer = ctx.layer
        rows = grad.unflatten(0, (-1, layer.peers))  # [B, P, out]
        columns = inputs.unflatten(0, (-1, layer.peers))
        torch.bmm(rows.permute(1, 2, 0), columns.transpose(0, 1), out=layer.weight_sink)
        if layer.bias_sink is not None:
            torch.sum(rows, 0, out=layer.bias_sink)
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None


class _PeerBatchNorm(_PeerLayer):
    """Batch normalisation in the view [B, P * C, H, W], with a copy of the shared weight and bias for each peer."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__(layer)
        self.eps = layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        assert self.bias is not None
        self.weights = self.weight.detach().repeat(self.peers).requires_grad_()
        self.biases = self.bias.detach().repeat(self.peers).requires_grad_()
        self.mean, self.variance = (torch.zeros_like(self.weights) for _ in range(2))
        folded = inputs.reshape(-1, self.peers * inputs.shape[1], *inputs.shape[2:])
        # Momentum 1 leaves the statistics of this batch in the "running" mean and variance.
        normal = F.batch_norm(folded, self.mean, self.variance, self.weights, self.biases, True, 1.0, self.eps)
        return normal.view_as(inputs)

    def collect(self, statistics: Statistics, start: int) -> int:
        """Move gradients and statistics to their places; return the next layer's first feature."""
        assert self.weights.grad is not None and self.biases.grad is not None and self.bias_sink is not None
        stop = start + self.weight.numel()
        self.weight_sink.copy_(self.weights.grad.view(self.peers, -1))
        self.bias_sink.copy_(self.biases.grad.view(self.peers, -1))
        statistics.means[:, start:stop] = self.mean.view(self.peers, -1)
        statistics.variances[:, start:stop] = self.variance.view(self.peers, -1)
        del self.weights, self.biases
        return stop


def _replace_layers(model: nn.Module) -> list[_PeerLayer]:
    """Replace every layer with parameters by its version per peer; return those in the order of `model.modules()`."""
    kinds = {nn.Conv2d: _PeerConv2d, nn.BatchNorm2d: _PeerBatchNorm, nn.Linear: _PeerLinear}
    layers: list[_PeerLayer] = []
    for name, layer in list(model.named_modules()):
        if type(layer) in kinds:
            layers.append(kinds[type(layer)](layer))
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layers[-1])
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"expected Conv2d, BatchNorm2d and Linear layers, got {name}: {layer}")
    return layers
