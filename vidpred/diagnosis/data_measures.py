"""What clips show by themselves: whether they move, repeat each other, and come in order.

All figures are over uint8 clips (B, T, 3, H, W), in grey levels of 0..255 where they have a unit.
"""

import itertools
import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidpred.tensor_ops import fold_frames, unfold_frames

STILL = 0.4  # grey levels rms between frames, below which a clip does not move: rounding and coding noise
REPEATED = 0.1  # of a clip's usual change: frames that are as good as equal
COARSE = 16  # pixels of the shorter side on which the order of frames is judged
MOVING = 6  # clips below which nothing is said of repetition
LONGEST = 8  # frames of which the smoothest order is searched


def data_measures(clips: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The measures `data/*` of clips that were read; see the comments."""
    changes = frame_changes(clips)  # (B, T-1)
    found = {"data/clips": float(len(clips)), "data/frames": float(clips.shape[1])}
    found["data/twins"] = _twins(clips, names)  # share of clips that are equal to one of another name
    if clips.shape[1] < 2:
        return found
    moving = changes.square().mean(1).sqrt() > STILL
    found["data/motion"] = float(changes.square().mean().sqrt())
    found["data/still"] = float((~moving).double().mean())  # share of clips in which nothing moves
    period, share = _repetition(changes[moving])
    found["data/repetition_period"] = float(period)  # frames that are shown before there is a new one
    found["data/repetition"] = share  # share of the moving clips that have this period
    disorder, contrast = _disorder(clips[moving])
    found["data/disorder"] = disorder  # 0: the smoothest order of the frames, 1: no smoother than by chance
    found["data/order_contrast"] = contrast  # how much smoother the smoothest order is than one by chance
    return found


def frame_changes(clips: Tensor) -> Tensor:
    """(B, T-1) rms difference of consecutive frames, in grey levels."""
    pixels = clips.double()
    return (pixels[:, 1:] - pixels[:, :-1]).square().mean(dim=(2, 3, 4)).sqrt()


def _twins(clips: Tensor, names: Sequence[str]) -> float:
    """Share of the clips whose content is that of a clip of another item."""
    contents: dict[bytes, set[str]] = {}
    keys = [clip.cpu().contiguous().numpy().tobytes() for clip in clips]
    items = [name.split(" (window ")[0] for name in names]
    for key, item in zip(keys, items):
        contents.setdefault(key, set()).add(item)
    return sum(len(contents[key]) > 1 for key in keys) / max(len(keys), 1)


def _repetition(changes: Tensor) -> tuple[int, float]:
    """(k, share of the clips that show each frame k times) for the k > 1 of most clips; (1, 0) where there is none.

    changes: (B, T-1) of clips that move; few of them, or frames, tell nothing. A clip with one new frame fits any k, so
    those with two or more count, and the others may not speak against them.
    """
    clips, count = changes.shape
    if clips < MOVING or count < 3:
        return 1, 0.0
    places = torch.arange(count)
    shares = {}
    for period in range(2, count):
        fits = torch.zeros(clips, dtype=torch.bool)
        several = torch.zeros(clips, dtype=torch.bool)
        for phase in range(period):
            new = places % period == phase
            usual = changes[:, new].median(1, keepdim=True).values  # a hard cut does not change it
            fits_here = (changes[:, new] > REPEATED * usual).all(1) & (changes[:, ~new] < REPEATED * usual).all(1)
            fits |= fits_here
            several |= fits_here & (new.sum() > 1)
        once = _single_change(changes)
        shares[period] = min(_share(fits, torch.ones_like(fits)), _share(several, ~once))
    commonest = max(shares, key=shares.__getitem__)
    return commonest, shares[commonest]


def _single_change(changes: Tensor) -> Tensor:
    """(B,) whether a clip has one new frame only."""
    largest = changes.amax(1, keepdim=True)
    return (changes > REPEATED * largest).sum(1) < 2


def _share(chosen: Tensor, among: Tensor) -> float:
    """Of `among` which are chosen; 0 where they are fewer than two."""
    return float(chosen[among].double().mean()) if int(among.sum()) > 1 else 0.0


def _disorder(clips: Tensor) -> tuple[float, float]:
    """(disorder, contrast) over moving clips; (0, 0) where there is none of 3 frames or more."""
    if len(clips) == 0 or clips.shape[1] < 3:
        return 0.0, 0.0
    coarse = _coarse(clips[:, :LONGEST])
    above, below, contrasts = 0.0, 0.0, []
    for clip in coarse:
        distances = torch.cdist(clip.flatten(1), clip.flatten(1))
        count = len(clip)
        shown = float(distances.diagonal(1).mean())
        chance = float(distances.sum() / (count * (count - 1)))
        smoothest = _shortest_path(distances.tolist()) / (count - 1)
        above, below = above + (shown - smoothest), below + (chance - smoothest)
        contrasts.append((chance - smoothest) / max(chance, 1e-9))
    return above / max(below, 1e-9), sum(contrasts) / len(contrasts)


def _coarse(clips: Tensor) -> Tensor:
    factor = max(min(clips.shape[-2:]) // COARSE, 1)
    return unfold_frames(F.avg_pool2d(fold_frames(clips).double(), factor), len(clips))


def _shortest_path(distances: list[list[float]]) -> float:
    """Length of the shortest way through all frames (Held and Karp 1962)."""
    count = len(distances)
    best = {(1 << end, end): 0.0 for end in range(count)}
    for size in range(2, count + 1):
        for chosen in itertools.combinations(range(count), size):
            visited = sum(1 << frame for frame in chosen)
            for end in chosen:
                before = visited & ~(1 << end)
                best[visited, end] = min(
                    best[before, last] + distances[last][end] for last in chosen if last != end
                )
    everything = (1 << count) - 1
    return min(best[everything, end] for end in range(count)) if count > 1 else math.nan
