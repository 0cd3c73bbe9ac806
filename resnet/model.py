"""ResNet-18 with the CIFAR stem at any width."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

Init = Literal["torch", "he"]
"""Initial values of convolutions: PyTorch's own, or He's normal initialisation."""

STAGE_STRIDES = (1, 2, 2, 2)
BLOCKS_PER_STAGE = 2


def resnet18(
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
    *,
    init: Init = "torch",
    seed: int | torch.Generator = 0,
) -> ResNet:
    """Return torchvision's ResNet-18 for small images, in float32 on the CPU, in training mode.

    The stem is a 3x3 convolution of stride 1 without max-pooling (He et al. 2016, section 4.2); the four stages have
    `width`, `2 width`, `4 width`, `8 width` channels. Width 64 is the standard network (11,173,962 parameters for ten
    classes), width 16 the reduced one (701,466).

    The initial values are a function of `init` and `seed` alone (a generator is advanced). Convolutions begin with
    PyTorch's own values under `torch`, uniform within 1/sqrt(fan in), and under `he` with He's normal values of
    variance 2/fan out. Batch normalisation begins with ones and zeros, the linear layer with PyTorch's own values.
    The global random state is neither read nor changed.

    Raises ValueError if a size is not positive, or for another `init`.
    """
    if init not in ("torch", "he"):
        raise ValueError(f"init must be torch or he, got {init!r}")
    for name, value in (("width", width), ("classes", classes), ("channels", channels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    model = outline(width, classes, channels)
    model.to_empty(device="cpu")
    _initialise(model, init, seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed))
    return model


def outline(width: int, classes: int, channels: int) -> ResNet:
    """Return the network of `resnet18` on the meta device: it has shapes, and neither memory nor values."""
    with torch.device("meta"):
        model = ResNet(BasicBlock, [BLOCKS_PER_STAGE] * len(STAGE_STRIDES), num_classes=classes)
        model.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        model.bn1 = nn.BatchNorm2d(width)
        model.maxpool = nn.Identity()
        inputs = width
        for index, stride in enumerate(STAGE_STRIDES):
            setattr(model, f"layer{index + 1}", _stage(inputs, width << index, stride))
            inputs = width << index
        model.fc = nn.Linear(inputs, classes)
    return model


def values_left(height: int, width: int) -> int:
    """Return how many pixels an image of this size has in the last stage."""
    for stride in STAGE_STRIDES:
        height, width = -(-height // stride), -(-width // stride)
    return height * width


def _stage(inputs: int, planes: int, stride: int) -> nn.Sequential:
    """Two basic blocks; the first one changes the number of channels and the resolution."""
    shortcut = None
    if stride != 1 or inputs != planes:
        shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
    blocks = [BasicBlock(inputs, planes, stride, shortcut)]
    blocks += [BasicBlock(planes, planes) for _ in range(BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(*blocks)


def _initialise(model: nn.Module, init: Init, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and init == "he":
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> tuple[float, float]:
    """Return (accuracy, mean cross-entropy) of `model` in evaluation mode, on its own running statistics.

    images: [N, C, H, W], normalised, of the model's dtype and device; labels: [N] int64. The model's mode is restored.
    Raises ValueError if there are no samples or the numbers of images and labels differ.
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"expected as many images as labels and at least one, got {len(images)} and {len(labels)}")
    training = model.training
    model.eval()
    try:
        correct = torch.zeros((), dtype=torch.int64, device=images.device)
        loss = torch.zeros((), dtype=torch.float64, device=images.device)
        for start in range(0, len(images), batch_size):
            target = labels[start : start + batch_size]
            logits = model(images[start : start + batch_size])
            correct += (logits.argmax(1) == target).sum()
            loss += nn.functional.cross_entropy(logits, target, reduction="sum").double()
    finally:
        model.train(training)
    return correct.item() / len(images), loss.item() / len(images)
