"""Clips whose motion is known."""

import torch

FRAMES, SIZE, CLIPS = 8, 32, 10


def moving(speed=2.0, clips=CLIPS, seed=0):
    """A bright blob that moves evenly, on another way in each clip; (B, T, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    made = []
    for _ in range(clips):
        start, angle = 10 + 10 * torch.rand(2, generator=generator), 6.28 * torch.rand((), generator=generator)
        ways = start + speed * torch.arange(FRAMES)[:, None] * torch.stack([angle.sin(), angle.cos()]) * 0.5
        distance = (y - ways[:, 0, None, None]) ** 2 + (x - ways[:, 1, None, None]) ** 2
        made.append(20 + 200 * torch.exp(-distance / 30))
    return torch.stack(made)[:, :, None].expand(-1, -1, 3, -1, -1).round().to(torch.uint8)
