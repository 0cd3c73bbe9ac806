"""ResNet-18 with the CIFAR stem at any width."""

from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["torch", "he"]
"""How convolutions begin: as PyTorch's layers do, or by He's normal initialisation."""

STAGE_STRIDES = (1, 2, 2, 2)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2), which projects if the shapes differ."""

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != planes:
            projection = nn.Conv2d(inputs, planes, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W]; returns [N, planes, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = nn.functional.relu(self.bn1(self.conv1(x)))
        return nn.functional.relu(self.bn2(self.conv2(inner)) + shortcut)


class ResNet(nn.Module):
    """ResNet-18 with parameters of the names, and in the order, that they have in torchvision.

    torchvision itself is not imported: that takes as long as importing torch, in every process of a run.
    """

    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for index, stride in enumerate(STAGE_STRIDES):
            planes = width << index
            blocks = [BasicBlock(inputs, planes, stride)]
            blocks += [BasicBlock(planes, planes) for _ in range(BLOCKS_PER_STAGE - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            inputs = planes
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: [N, channels, H, W]; returns logits [N, classes]."""
        x = nn.functional.relu(self.bn1(self.conv1(images)))
        for index in range(len(STAGE_STRIDES)):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _conv3x3(inputs: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, planes, kernel_size=3, stride=stride, padding=1, bias=False)


def resnet18(
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
    *,
    init: Init = "torch",
    seed: int | torch.Generator = 0,
) -> ResNet:
    """Return a ResNet-18 for small images, in float32 on the CPU, in training mode.

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
    # On the meta device no random number is drawn.
    with torch.device("meta"):
        model = ResNet(width, classes, channels)
    model.to_empty(device="cpu")
    _initialise(model, init, seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed))
    return model


def values_left(height: int, width: int) -> int:
    """Return how many pixels an image of this size has in the last stage."""
    for stride in STAGE_STRIDES:
        height, width = -(-height // stride), -(-width // stride)
    return height * width


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
