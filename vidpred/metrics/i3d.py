"""I3D, the Inception network inflated to video (Carreira and Zisserman 2017), for Fréchet video distances.

Its tensors have the names of the usual PyTorch port (`Mixed_3b.b1a.conv3d.weight`, ...), so that those
weights, converted to safetensors, load as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAME_SIZE = 224
SHORTEST_CLIP = 9
"""Frames: the network halves their number three times, and its last average wants two."""

# Channels of an Inception module: its input, then 1x1; 1x1 and 3x3; 1x1 and 3x3; pooling and 1x1.
_MODULES = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """Clips (B, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits of Kinetics-400, mean over time: (B, 400)."""

    def __init__(self, classes: int = 400):
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, channels in _MODULES.items():
            self.add_module(name, _Inception(*channels))
        self.logits = _Logits(1024, classes)

    def forward(self, clips: Tensor) -> Tensor:
        x = _pool(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = self.Mixed_3c(self.Mixed_3b(x))
        x = _pool(x, (3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            x = getattr(self, name)(x)
        x = _pool(x, (2, 2, 2), (2, 2, 2))
        x = self.Mixed_5c(self.Mixed_5b(x))
        x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).mean(dim=(2, 3, 4))


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, side, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv3d(_pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))).relu_()


class _Logits(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class _Inception(nn.Module):
    """Four branches side by side on the channels."""

    def __init__(self, width: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0 = _Unit(width, b0, 1)
        self.b1a, self.b1b = _Unit(width, b1a, 1), _Unit(b1a, b1b, 3)
        self.b2a, self.b2b = _Unit(width, b2a, 1), _Unit(b2a, b2b, 3)
        self.b3b = _Unit(width, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], dim=1)


def _pool(x: Tensor, sides: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return functional.max_pool3d(_pad_same(x, sides, strides), sides, strides)


def _pad_same(x: Tensor, sides: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """TensorFlow's border, for which the weights were trained: zeros, the odd one at the end."""
    padding: list[int] = []
    for length, side, stride in zip(x.shape[-3:], sides, strides):
        missing = max(side - (length % stride or stride), 0)
        padding = [missing // 2, missing - missing // 2, *padding]
    return functional.pad(x, padding)
