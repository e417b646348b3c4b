"""The patch discriminator of pix2pix (Isola et al. 2017), with normalisation in each image by itself.

Batch normalisation, which the original has, would make the result depend on how a batch is shared among processes.
"""

from torch import Tensor, nn

NORM_GROUPS = 8
WIDEST = 8  # times the channels of the first layer


class PatchDiscriminator(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] -> one score per patch, (N, 1, h, w); high means true.

    `layers` convolutions halve the picture, two more do not: 1, 2 and 3 see patches of 16, 34 and 70 pixels.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [channels * min(2**level, WIDEST) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            groups = NORM_GROUPS if widths[level] % NORM_GROUPS == 0 else 1
            parts += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(groups, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
