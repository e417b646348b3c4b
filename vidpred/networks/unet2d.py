"""diffusers' `UNet2DModel` behind this library's network call: each frame is a picture of its own."""

import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from vidpred.tensor_ops import check_clip, fold_frames, unfold_frames

TIMESTEPS = 1000.0  # diffusers' time embedding is made for timesteps of 0 to 999


class DiffusersUNet2D(nn.Module):
    """`UNet2DModel` over frames that are folded into the batch; it is told of nothing but their noise.

    Args:
        in_channels, out_channels: latent channels of the input and of the output.
        channels: width of each level, finest first; each further level halves height and width.
        blocks_per_level: residual blocks of each level on the way down; on the way up there is one more.
        attention_levels: indices into `channels`.
        norm_groups: groups of the group norms; must divide every width.
        head_dim: width of one attention head.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...],
        blocks_per_level: int,
        attention_levels: tuple[int, ...],
        norm_groups: int,
        head_dim: int,
    ):
        super().__init__()
        down = ["AttnDownBlock2D" if level in attention_levels else "DownBlock2D" for level in range(len(channels))]
        up = ["AttnUpBlock2D" if level in attention_levels else "UpBlock2D" for level in range(len(channels))]
        self.model = UNet2DModel(
            in_channels=in_channels, out_channels=out_channels, block_out_channels=tuple(channels),
            layers_per_block=blocks_per_level, down_block_types=tuple(down), up_block_types=tuple(up[::-1]),
            norm_num_groups=norm_groups, attention_head_dim=head_dim,
        )  # fmt: skip
        self._down_factor = 2 ** (len(channels) - 1)

    def forward(
        self, x: Tensor, noise_code: Tensor, given: Tensor, frame_times: Tensor, condition: object = None
    ) -> Tensor:
        """x (B, T, C, H, W) of any size, noise_code (B, T) in [0, 1] -> (B, T, C_out, H, W).

        `given` and `frame_times` (B, T) are not looked at: configurations that give frames are refused.
        """
        check_clip("x", x)
        if condition is not None:
            raise ValueError("DiffusersUNet2D takes no condition")
        height, width = x.shape[-2:]
        h = F.pad(fold_frames(x), (0, -width % self._down_factor, 0, -height % self._down_factor), mode="replicate")
        h = self.model(h, TIMESTEPS * noise_code.flatten().float()).sample
        return unfold_frames(h[..., :height, :width], len(x))
