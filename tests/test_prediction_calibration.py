"""Latent calibration against closed form; the same on one process and on several."""

import json

import pytest
import torch

from distributed_helper import run_torchrun
from vidpred.errors import UserError
from vidpred.prediction import LatentCalibration, measure_calibration

SHIFT = torch.tensor([-0.92, 0.0, 40.0])
SCALE = torch.tensor([0.32, 4.6, 1.0])


def clips(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (count, 2, 3, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return list(frames)


def encode(frames):
    """Three latent channels with the moments SHIFT, SCALE: uniform on 0..255 has variance 5461.25."""
    unit = (frames.float() - 127.5) / 5461.25**0.5
    return unit * SCALE[:, None, None] + SHIFT[:, None, None]


def test_moments_and_range():
    calibration = measure_calibration(encode, clips(40), channels=3)
    raw = torch.cat([encode(frames) for frames in clips(40)]).double()
    torch.testing.assert_close(calibration.shift.double(), raw.mean(dim=(0, 1, 3, 4)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        calibration.scale.double(), raw.std(dim=(0, 1, 3, 4), correction=0), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(calibration.shift, SHIFT, rtol=0, atol=0.06)
    torch.testing.assert_close(calibration.scale, SCALE, rtol=0.02, atol=0)
    normal = calibration.normalize(raw.float())
    torch.testing.assert_close(normal.mean(dim=(0, 1, 3, 4)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.std(dim=(0, 1, 3, 4), correction=0), torch.ones(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(calibration.low, normal.amin(dim=(0, 1, 3, 4)), rtol=0, atol=1e-4)
    torch.testing.assert_close(calibration.high, normal.amax(dim=(0, 1, 3, 4)), rtol=0, atol=1e-4)
    torch.testing.assert_close(calibration.denormalize(normal), raw.float(), rtol=1e-5, atol=1e-5)
    assert "-0.9" in str(calibration)


def test_a_constant_channel_keeps_unit_scale():
    calibration = measure_calibration(lambda frames: frames.float()[:, :, :2] * 0 + 7, clips(2), channels=2)
    assert calibration.scale.tolist() == [1.0, 1.0] and calibration.shift.tolist() == [7.0, 7.0]
    assert calibration.low.tolist() == [0.0, 0.0]


def test_without_measurements_it_is_the_identity_and_it_travels_as_a_state():
    fresh = LatentCalibration(4)
    latents = torch.randn(1, 2, 4, 3, 3)
    assert torch.equal(fresh.normalize(latents), latents) and torch.equal(fresh.denormalize(latents), latents)
    measured = measure_calibration(encode, clips(2), channels=3)
    loaded = LatentCalibration(3)
    loaded.load_state_dict(measured.state_dict())
    assert set(measured.state_dict()) == {"shift", "scale", "low", "high"}
    assert all(torch.equal(a, b) for a, b in zip(loaded.buffers(), measured.buffers()))
    with pytest.raises(ValueError, match="B, T, C, H, W"):
        fresh.normalize(latents[0])


def test_nothing_to_measure_and_broken_autoencoders_are_named():
    with pytest.raises(UserError, match="no training clip"):
        measure_calibration(encode, [], channels=3)
    with pytest.raises(UserError, match="non-finite"):
        measure_calibration(lambda frames: encode(frames) / 0, clips(1), channels=3)


SCRIPT = """
import json, sys
import torch
sys.path.insert(0, "tests")
from test_prediction_calibration import clips, encode
from vidpred import distributed
from vidpred.errors import UserError
from vidpred.prediction import measure_calibration

with distributed.process_group("cpu"):
    mine = clips(3) if distributed.rank() == 0 else []  # the other rank has no clip at all
    calibration = measure_calibration(encode, mine, channels=3)
    broken = distributed.rank() == 0  # one rank alone meets a non-finite latent: all must stop
    try:
        measure_calibration(lambda frames: encode(frames) / (not broken), clips(1), channels=3)
        raise SystemExit("not refused")
    except UserError:
        pass
    values = distributed.gather_objects([buffer.tolist() for buffer in calibration.buffers()])
    if distributed.is_main():
        print("RESULT", json.dumps(values))
"""


def test_equal_on_every_rank_also_with_an_empty_share(tmp_path):
    script = tmp_path / "calibrate.py"
    script.write_text(SCRIPT)
    output = run_torchrun(script, nproc=2, timeout=240).stdout
    values = json.loads(output.split("RESULT", 1)[1])
    alone = [buffer.tolist() for buffer in measure_calibration(encode, clips(3), channels=3).buffers()]
    assert values == [alone, alone]
