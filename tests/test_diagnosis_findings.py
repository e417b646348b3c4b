"""Diagnosis against closed forms: oracles are healthy, planted faults are named."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from vidpred.data import ClipBatch
from vidpred.denoiser import Denoiser
from vidpred.diagnosis import Subject, diagnosis_lines, save_plot, summary, verdict
from vidpred.diagnosis.diagnose import diagnose_clips, level_measures
from vidpred.diagnosis.findings import frame_findings, sampling_findings, weight_findings
from vidpred.diagnosis.inference import check_inference
from vidpred.diagnosis.measurement import latent_figures, one_step_errors, sampling_steps, weight_figures
from vidpred.diagnosis.records import StepRow
from vidpred.diffusion import (
    ClipBoundConfig,
    NoiseSchedule,
    SamplingConfig,
    ScheduleConfig,
    build_parameterization,
)
from vidpred.prediction import LatentCalibration, Predictor
from vidpred.tensor_ops import append_dims

CLIPS, FRAMES, GIVEN, SIZE = 6, 6, 2, 12


class Pixels(nn.Module):
    """An autoencoder whose latents are the pixels, `gain` times too large."""

    latent_channels, down_factor = 3, 1

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain

    def encode(self, frames):
        return self.gain * (frames.float() / 127.5 - 1)

    def decode(self, latents):
        return (latents / self.gain + 1) / 2


class Faint(nn.Module):
    """A network of one weight: predicts `weight` everywhere, whatever it sees."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    def forward(self, x, noise_code, given, frame_times, condition=None):
        return self.weight * torch.ones_like(x)


def make_clips(seed=0):
    """Coloured noise that drifts: every frame mixes the one before with news, no two clips alike."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(CLIPS, 3, SIZE, SIZE, generator=generator)]
    for _ in range(FRAMES - 1):
        frames.append(0.8 * frames[-1] + 0.6 * torch.randn(CLIPS, 3, SIZE, SIZE, generator=generator))
    pixels = (127.5 + 30 * torch.stack(frames, dim=1)).clamp(0, 255).round().to(torch.uint8)
    return ClipBatch(
        frames=pixels,
        roles=(torch.arange(FRAMES) < GIVEN).to(torch.uint8).expand(CLIPS, -1).contiguous(),
        frame_times=torch.arange(FRAMES, dtype=torch.float32).expand(CLIPS, -1).contiguous(),
        draws=torch.arange(CLIPS),
        names=[f"folder/{index}.mp4" for index in range(CLIPS)],
    )


def calibration_of(clips, autoencoder):
    raw = autoencoder.encode(clips.frames)
    calibration = LatentCalibration(3)
    calibration.shift.copy_(raw.mean((0, 1, 3, 4)))
    calibration.scale.copy_(raw.std((0, 1, 3, 4)))
    normal = calibration.normalize(raw)
    calibration.low.copy_(normal.amin((0, 1, 3, 4)))
    calibration.high.copy_(normal.amax((0, 1, 3, 4)))
    return calibration


def make_subject(tmp_path, denoiser, clips, *, calibration=None, gain=1.0, clip="auto", weights=None):
    autoencoder = Pixels(gain)
    predictor = Predictor(
        denoiser,
        autoencoder,
        calibration or calibration_of(clips, autoencoder),
        NoiseSchedule(ScheduleConfig(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)),
        SamplingConfig(num_inference_steps=8, clip=ClipBoundConfig(kind=clip)),
        GIVEN,
        FRAMES,
    )
    weights = weights or {"weight": torch.ones(3)}
    return Subject("a model", predictor, weights, None, None, None, None, 0, tmp_path, "model")


def oracle(clips, gain=1.0):
    """Knows the truth."""
    autoencoder = Pixels(gain)
    latents = calibration_of(clips, autoencoder).normalize(autoencoder.encode(clips.frames))
    return lambda x, level, given, frame_times: latents


def real_denoiser(network, parameterization="x0", residual=True):
    schedule = NoiseSchedule(ScheduleConfig(kind="scaled_linear", beta_start=0.00085, beta_end=0.012))
    return Denoiser(network, build_parameterization(parameterization, schedule), residual).eval()


def names(subject, clips):
    return [finding.name for finding in diagnose_clips(subject, clips).findings]


def test_a_perfect_oracle_is_healthy(tmp_path):
    clips = make_clips()
    diagnosis = diagnose_clips(make_subject(tmp_path, oracle(clips), clips), clips)
    assert diagnosis.findings == []
    for row in diagnosis.levels:
        assert row.error == 0 and row.unlearned > 0
    for row in diagnosis.chain.steps:
        assert row.clip_rate == 0 and row.eps_norm == pytest.approx(1, abs=0.05)
    assert verdict([], summary(diagnosis)).startswith("verdict: healthy: the one-step error is 0.00")


def test_the_reference_is_what_the_best_linear_denoiser_of_white_latents_reaches(tmp_path):
    """D = k x with k = alpha s^2 / (alpha^2 s^2 + sigma^2) is the exact posterior mean of N(0, s^2)."""
    clips, s = make_clips(), 0.7

    def wiener(x, level, given, frame_times):
        k = level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2)
        return append_dims(k, x.ndim) * x

    predictor = make_subject(tmp_path, wiener, clips).predictor
    latents = s * torch.randn(CLIPS, FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    rows = one_step_errors(predictor, latents, clips, seed=0)
    assert [row.timestep for row in rows] == predictor.schedule.timesteps(10)
    for row in rows:
        assert row.zero == pytest.approx(s, rel=0.01) and row.copy_last == pytest.approx(s * 2**0.5, rel=0.01)
        assert row.error == pytest.approx(row.unlearned, rel=0.01)
        assert row.alpha**2 + row.sigma**2 == pytest.approx(1, abs=1e-5)
    # Its first eps is its own best estimate sigma^2 x / (alpha^2 s^2 + sigma^2), of the pure noise x.
    first = sampling_steps(predictor, latents, clips, seed=0)[0]
    expected = first.sigma / (first.alpha**2 * s**2 + first.sigma**2)
    assert first.eps_norm == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("parameterization", ["x0", "v", "eps"])
@pytest.mark.parametrize("residual", [True, False])
def test_an_untrained_network_is_named(tmp_path, parameterization, residual):
    clips = make_clips()
    subject = make_subject(tmp_path, real_denoiser(Faint(), parameterization, residual), clips)
    assert names(subject, clips)[0] == "untrained"


def test_a_step_is_reported_as_it_was(tmp_path):
    """A denoiser that answers 2 everywhere, under a bound of 1.5."""
    clips = make_clips()
    denoiser = lambda x, level, given, frame_times: torch.full_like(x, 2.0)  # noqa: E731
    subject = make_subject(tmp_path, denoiser, clips)
    subject.predictor.sampling.clip = ClipBoundConfig(kind="static", bound=1.5)
    latents = subject.predictor.encode(clips.frames)
    rows = sampling_steps(subject.predictor, latents, clips, seed=0)
    assert [row.step for row in rows] == list(range(8))
    schedule = subject.predictor.schedule
    for row, t in zip(rows, schedule.timesteps(8)):
        assert (row.alpha, row.sigma) == pytest.approx((float(schedule.alphas[t]), float(schedule.sigmas[t])))
        assert row.x0 == (2.0, 2.0) and row.clip_rate == 1.0
    # x ~ N(0, 1) and eps = (x - 1.5 alpha) / sigma at the first step.
    first = rows[0]
    expected = math.hypot(1, 1.5 * first.alpha) / first.sigma
    assert first.eps_norm == pytest.approx(expected, rel=0.03)
    found = sampling_findings(rows, latent_figures(subject.predictor.calibration, latents))
    assert "clip_rate_high" in [finding.name for finding in found]


def test_exploded_weights_are_named_before_their_effects(tmp_path):
    clips = make_clips()
    subject = make_subject(tmp_path, real_denoiser(Faint(500.0)), clips)
    assert names(subject, clips) == ["weights_exploded"]
    check = check_inference(subject, clips, 8.0, tmp_path, log=lambda line: None)
    assert [finding.name for finding in check.findings][:2] == ["x0_explodes", "clip_rate_high"]


def test_weights_that_are_not_finite_are_named_with_their_tensor(tmp_path):
    clips = make_clips()
    network = Faint(math.nan)
    subject = make_subject(tmp_path, real_denoiser(network), clips, weights=network.state_dict())
    assert names(subject, clips) == ["weights_not_finite"]
    check = check_inference(subject, clips, 8.0, tmp_path)
    assert [finding.name for finding in check.findings] == ["weights_not_finite", "prediction_not_finite"]
    assert check.prediction is None and check.pictures == []


@pytest.mark.parametrize("gain", [1.0, 4.6])
def test_raw_latents_are_named(tmp_path, gain):
    """The calibration was never measured; at the larger gain raw latents are as wide as SD's."""
    clips = make_clips()
    subject = make_subject(
        tmp_path, oracle(clips, gain), clips, gain=gain, calibration=LatentCalibration(3), clip="static"
    )
    assert names(subject, clips) == ["latent_scale_missing"]


def test_wrong_noise_in_the_state_is_named(tmp_path):
    """A denoiser that takes its input for clean, x0 = x / alpha, leaves no eps at all."""
    clips = make_clips()
    denoiser = lambda x, level, given, frame_times: x / append_dims(level.alpha, x.ndim)  # noqa: E731
    subject = make_subject(tmp_path, denoiser, clips, clip="none")
    latents = subject.predictor.encode(clips.frames)
    rows = sampling_steps(subject.predictor, latents, clips, seed=0)
    figures = latent_figures(subject.predictor.calibration, latents)
    found = {finding.name: finding for finding in sampling_findings(rows, figures)}
    assert "is 0.00 of its expectation" in found["eps_norm_off"].evidence


def test_levels_of_another_variance_are_judged_as_those_of_one():
    """EDM: x = x0 + sigma eps, so that alpha is 1 at every level."""
    latents = torch.randn(4, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    figures = latent_figures(LatentCalibration(3), latents)
    noisy = StepRow(0, 1.0, 80.0, (-300.0, 300.0), (-60.0, 60.0), 0.0, 0.98)
    assert list(sampling_findings([noisy], figures)) == []
    late = dataclasses.replace(noisy, sigma=0.5)
    assert [finding.name for finding in sampling_findings([late], figures)] == ["x0_explodes"]
    silent = dataclasses.replace(noisy, x0=(-2.0, 2.0), eps_norm=0.1)
    assert [finding.name for finding in sampling_findings([silent], figures)] == ["eps_norm_off"]


def test_figures_of_weights_and_their_average():
    weights = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    near = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([3.5])}
    figures = weight_figures(weights, near, 10)
    assert (figures.count, figures.raw_norm, figures.distance) == (3, 5.0, pytest.approx(0.1))
    assert figures.ema_norm == pytest.approx(math.hypot(3, 3.5)) and list(weight_findings(figures)) == []
    stuck = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([0.0])}
    for averaged, updates in ((stuck, 10), (near, 0)):
        found = list(weight_findings(weight_figures(weights, averaged, updates)))
        assert [finding.name for finding in found] == ["ema_never_updated"]
    assert list(weight_findings(weight_figures(weights, weights, 0))) == []  # step 0 of a run
    broken = {"a": torch.tensor([math.inf, 0.0]), "b": torch.tensor([4.0])}
    found = list(weight_findings(weight_figures(weights, broken, 10)))
    assert [finding.name for finding in found] == ["weights_not_finite"] and "EMA a" in found[0].evidence


def test_learning_ratio_is_a_geometric_mean(tmp_path):
    clips = make_clips()
    rows = diagnose_clips(make_subject(tmp_path, oracle(clips), clips), clips).levels[:2]
    rows = [dataclasses.replace(row, error=factor * row.unlearned) for row, factor in zip(rows, (0.25, 1.0))]
    found = level_measures(rows, "levels")
    assert found["levels/ratio"] == pytest.approx(0.5) and found["levels/ratio_least"] == pytest.approx(0.25)
    assert level_measures([dataclasses.replace(rows[0], error=math.nan)], "levels") == {"levels/ratio": math.inf}


def test_frames_out_of_range_are_named(tmp_path):
    clips = make_clips()
    subject = make_subject(tmp_path, lambda x, *_: torch.full_like(x, 9.0), clips, clip="none")
    check = check_inference(subject, clips, 8.0, tmp_path, log=lambda line: None)
    assert "frames_out_of_range" in [finding.name for finding in check.findings]
    assert list(frame_findings(0.01, -0.4, 1.2)) == []


def test_inference_of_an_oracle_gives_the_truth_back(tmp_path):
    clips = make_clips()
    lines = []
    check = check_inference(make_subject(tmp_path, oracle(clips), clips), clips, 8.0, tmp_path, lines.append)
    assert check.findings == []
    assert torch.equal(check.prediction, clips.frames[:, GIVEN:])
    assert len(check.pictures) == 3 * CLIPS and all(path.stat().st_size for path in check.pictures)
    assert 0 < check.seconds_per_step < check.seconds
    for start in ("num_inference_steps=8", "clipped=0 values", "Final latents range: [", "Denormalized: [",
                  "Predicted frames range: ["):  # fmt: skip
        assert sum(line.startswith(start) for line in lines) == 1
    assert f"({CLIPS} clips of {FRAMES - GIVEN} frames at once)" in list(check.lines())[-1]


@pytest.mark.parametrize("weight", [0.3, 1e6, math.nan])
def test_report_and_plot_hold_whatever_was_measured(tmp_path, weight):
    clips = make_clips()
    subject = make_subject(tmp_path, real_denoiser(Faint(weight)), clips)
    diagnosis = diagnose_clips(subject, clips)
    lines = list(diagnosis_lines(diagnosis))
    if math.isfinite(weight):
        assert sum(line.split()[:1] == [str(step)] for step in range(8) for line in lines) == 8
    assert any(line.startswith("finding 1 of") for line in lines) == bool(diagnosis.findings)
    save_plot(tmp_path / "plot.png", diagnosis)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    diagnosis.save(tmp_path / "diagnosis.json")
    saved = json.loads((tmp_path / "diagnosis.json").read_text())
    assert saved["findings"][0]["name"] == diagnosis.findings[0].name and not saved["healthy"]
    assert verdict(diagnosis.findings, "").count("\n") == 0
