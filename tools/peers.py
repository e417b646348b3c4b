"""diffusers' video UNets behind this project's network call, for `tools/benchmark.py`.

Both take one noise level per clip, so they get the largest one of its frames. They are conditioned as Stable
Video Diffusion is: context latents lie beside the noisy ones on the channels (the given frames' own latents,
the last given one under every unknown frame).
"""

import contextlib
import warnings
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpred.networks.layers import attend


@contextlib.contextmanager
def float32_attention_on_cpu() -> Iterator[None]:
    """Attention as this project's network has it: torch's CPU kernel is several times slower in bfloat16, which is
    no fault of a peer."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


class PeerNetwork(nn.Module):
    """`unet(sample, timestep, context)` called as `network(x, noise_code, given, frame_times, condition)`."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, noise_code: Tensor, given: Tensor, frame_times: Tensor, condition=None) -> Tensor:
        last = (given * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(dim=1)  # (B,)
        context = x[torch.arange(len(x), device=x.device), last][:, None]
        context = torch.where(given[:, :, None, None, None], x, context.expand_as(x))
        timestep = 1000 * noise_code.amax(dim=1)  # (B,)
        with float32_attention_on_cpu():
            return self.call(torch.cat([x, context], dim=2), timestep)


class SVDNetwork(PeerNetwork):
    """`UNetSpatioTemporalConditionModel` (Stable Video Diffusion), 28.4M parameters."""

    def __init__(self, channels: int, out_channels: int):
        from diffusers import UNetSpatioTemporalConditionModel

        super().__init__(
            UNetSpatioTemporalConditionModel(
                in_channels=2 * channels,
                out_channels=out_channels,
                down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
                up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
                block_out_channels=(64, 128, 256),
                layers_per_block=2,
                cross_attention_dim=64,
                num_attention_heads=(2, 4, 8),
                addition_time_embed_dim=32,
                projection_class_embeddings_input_dim=96,
            )
        )

    def call(self, sample: Tensor, timestep: Tensor) -> Tensor:
        nothing = sample.new_zeros(len(sample), 1, 64)  # the image embedding, which this comparison has not
        times = sample.new_zeros(len(sample), 3)
        return self.unet(sample, timestep, nothing, added_time_ids=times).sample


class UNet3DNetwork(PeerNetwork):
    """`UNet3DConditionModel` (ModelScope's text-to-video), 29.5M parameters."""

    def __init__(self, channels: int, out_channels: int):
        from diffusers import UNet3DConditionModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unet = UNet3DConditionModel(
                in_channels=2 * channels,
                out_channels=out_channels,
                down_block_types=("CrossAttnDownBlock3D",) * 2 + ("DownBlock3D",),
                up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 2,
                block_out_channels=(64, 128, 256),
                layers_per_block=2,
                cross_attention_dim=64,
                attention_head_dim=32,
            )
        super().__init__(unet)

    def call(self, sample: Tensor, timestep: Tensor) -> Tensor:
        nothing = sample.new_zeros(len(sample), 1, 64)
        return self.unet(sample.transpose(1, 2), timestep, nothing).sample.transpose(1, 2)
