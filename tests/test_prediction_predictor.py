"""The predictor with stand-ins whose answer is known: shapes, windows, randomness, ranges, errors."""

import pytest
import torch

from vidpred import random_streams
from vidpred.autoencoders import AUTOENCODERS, build_autoencoder
from vidpred.diffusion import ClipBoundConfig, GuidanceConfig, NoiseSchedule, SamplingConfig, ScheduleConfig
from vidpred.errors import UserError
from vidpred.prediction import LatentCalibration, Predictor, clip_advice, measure_calibration
from vidpred.prediction.rollout import RolloutOptions
from vidpred.tensor_ops import append_dims

CONTEXT, HORIZON = 2, 5


def flat_clip(batch=2, frames=3, height=16, width=24):
    """Uniform frames, which the mock autoencoder reproduces exactly: grey 40, 50, 60, ... per row + 3."""
    grey = 40 + 10 * torch.arange(frames)[None] + 3 * torch.arange(batch)[:, None]
    return grey[:, :, None, None, None].expand(batch, frames, 3, height, width).to(torch.uint8)


def continue_the_ramp(x, level, given, frame_times):
    """x0 at time t on the line through the first two frames, which are given."""
    slope = (x[:, 1] - x[:, 0])[:, None]
    return x[:, :1] + append_dims(frame_times - frame_times[:, :1], x.ndim) * slope


def follow_the_noise(x, level, given, frame_times):
    """Depends on x, so that another noise is another prediction."""
    return 0.8 * torch.tanh(x + 0.2 * x.roll(1, dims=1))


def make(denoiser, clip="none", log=None, zero_terminal_snr=True, **sampling):
    autoencoder = build_autoencoder(AUTOENCODERS.from_mapping({"kind": "mock"}))
    calibration = LatentCalibration(autoencoder.latent_channels)
    config = SamplingConfig(**{"num_inference_steps": 4, "clip": ClipBoundConfig(kind=clip), **sampling})
    schedule = NoiseSchedule(ScheduleConfig(zero_terminal_snr=zero_terminal_snr))
    return Predictor(denoiser, autoencoder, calibration, schedule, config, CONTEXT, HORIZON, log)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7])
def test_windows_slide_over_what_was_predicted(num_frames):
    frames = flat_clip()
    predicted = make(continue_the_ramp).predict(frames, num_frames)
    expected = frames[:, -1:].int() + 10 * torch.arange(1, num_frames + 1)[None, :, None, None, None]
    assert predicted.dtype == torch.uint8 and predicted.shape == (2, num_frames, 3, 16, 24)
    assert torch.equal(predicted.int(), expected)


def test_context_noise_and_guidance_are_active_in_every_window():
    calls = []

    def denoiser(x, level, given, frame_times):
        calls.append((x, level, given))
        return follow_the_noise(x, level, given, frame_times)

    frames, guidance = flat_clip(), GuidanceConfig("vanilla", 2.0)
    predictor = make(denoiser, sampler="heun", context_noise=0.2, guidance=guidance)
    guided = predictor.predict(frames, 7)
    assert len(calls) == 3 * 6  # windows, calls of 4 Heun steps from pure noise to clean
    there = predictor.schedule.at(torch.tensor(0.2))
    for x, level, given in calls:
        assert len(x) == 2 * len(frames) and given[:2, :CONTEXT].all() and not given[2:].any()
        assert (level.code[:2, :CONTEXT] == there.code).all() and (level.code[2:, :CONTEXT] == 1).all()
    noised = calls[0][0][:2, :CONTEXT]  # of flat frames
    assert noised.std(dim=(3, 4)).min() > 0.5 * there.sigma
    assert not torch.equal(guided, make(follow_the_noise, sampler="heun").predict(frames, 7))


def test_given_latents_come_back_without_their_context_noise():
    predictor = make(follow_the_noise, context_noise=0.3)
    latents = predictor.encode(flat_clip(frames=HORIZON))
    given = torch.arange(HORIZON).expand(2, -1) < CONTEXT
    times = torch.arange(float(HORIZON)).expand(2, -1)
    end = predictor.sample_latents(latents, given, times, torch.arange(2), 0)
    assert torch.equal(end[given], latents[given]) and not torch.equal(end[~given], latents[~given])


def test_one_clip_or_a_batch():
    predictor = make(follow_the_noise)
    frames = flat_clip()
    single = predictor.predict(frames[0], 3)
    assert single.shape == (3, 3, 16, 24)
    assert torch.equal(single, predictor.predict(frames, 3)[0])


def test_a_rows_randomness_is_its_seed_purpose_and_draw_alone():
    predictor = make(follow_the_noise, eta=0.5)
    frames = flat_clip(batch=3)
    draws = torch.tensor([7, 1, 4])
    together = predictor.predict(frames, 6, draws=draws)
    for row in range(3):
        alone = predictor.predict(frames[row : row + 1], 6, draws=draws[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(predictor.predict(frames, 6, draws=draws + 1), together)
    assert not torch.equal(predictor.predict(frames, 6, seed=1, draws=draws), together)
    assert not torch.equal(predictor.predict(frames, 6, draws=draws, purpose="evaluation"), together)
    assert torch.equal(predictor.predict(frames, 6, draws=draws), together)


def test_every_step_of_every_window_draws_noise_of_its_own(monkeypatch):
    purposes = []
    normal = random_streams.normal

    def recorded(seed, purpose, *rest):
        purposes.append(purpose)
        return normal(seed, purpose, *rest)

    monkeypatch.setattr(random_streams, "normal", recorded)
    reports = []
    make(follow_the_noise, sampler="ddpm").predict(flat_clip(), 6, callback=reports.append)
    starts = [report.x for report in reports if report.step == 0]
    assert len(purposes) == len(set(purposes)) == 2 * (1 + 4)  # two windows: a start and four steps
    first, second = (start[:, CONTEXT:] for start in starts)
    assert (first - second).abs().min() > 0
    assert torch.cat([first, second]).std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("clip", ["none", "static", "auto", "dynamic"])
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_every_sampler_with_every_bound_keeps_given_frames(sampler, eta, clip, zero_terminal_snr):
    predictor = make(follow_the_noise, clip, None, zero_terminal_snr, sampler=sampler, eta=eta)
    latents = torch.randn(2, HORIZON, 3, 4, 6)
    given = torch.tensor([[True, False, False, True, False], [False, False, True, False, True]])
    unknown = torch.where(append_dims(given, 5), latents, torch.nan)  # what unknown frames hold is ignored
    times = torch.arange(HORIZON).float().expand(2, -1)
    sampled = predictor.sample_latents(unknown, given, times, torch.arange(2), seed=3)
    assert torch.equal(sampled[given], latents[given])
    assert sampled.isfinite().all() and sampled.shape == latents.shape


def test_the_auto_bound_is_the_calibrations_range():
    predictor = make(lambda x, *rest: torch.full_like(x, 100.0), clip="auto")
    calibration = predictor.calibration
    calibration.low.copy_(torch.tensor([-1.0, -2.0, 0.0]))
    calibration.high.copy_(torch.tensor([1.0, 4.0, 10.0]))
    given = torch.arange(5).expand(1, -1) < 2
    sampled = predictor.sample_latents(
        torch.zeros(1, 5, 3, 2, 2), given, torch.arange(5.0)[None], torch.zeros(1).long(), 0
    )
    expected = torch.tensor([1.2, 4.6, 11.0])  # a margin of 0.1 of the range
    torch.testing.assert_close(sampled[0, 2:].amax(dim=(0, 2, 3)), expected)


def test_encode_and_decode_are_calibrated_and_not_clamped():
    predictor = make(follow_the_noise)
    frames = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    measured = measure_calibration(predictor.autoencoder.encode, [frames], channels=3)
    predictor.calibration.load_state_dict(measured.state_dict())
    latents = predictor.encode(frames)
    assert latents.shape == (2, 4, 3, 4, 4) and latents.dtype == torch.float32
    torch.testing.assert_close(latents.mean(dim=(0, 1, 3, 4)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 1, 3, 4), correction=0), torch.ones(3), rtol=0, atol=1e-4)
    decoded = predictor.decode(latents)
    torch.testing.assert_close(decoded, predictor.autoencoder.decode(predictor.autoencoder.encode(frames)))
    assert predictor.decode(latents * 100).max() > 1


def test_steps_and_callback():
    predictor = make(follow_the_noise)
    reports = []
    predictor.predict(flat_clip(), 4, callback=reports.append)
    assert [report.step for report in reports] == [0, 1, 2, 3] * 2  # two windows
    reports.clear()
    predictor.predict(flat_clip(), 3, num_inference_steps=7, callback=reports.append)
    assert len(reports) == 7 and reports[0].level.alpha[0, -1] == 0


def test_range_lines():
    lines = []
    predictor = make(lambda x, *rest: torch.full_like(x, 9.0), clip="static", log=lines.append)
    predictor.predict(flat_clip(batch=1), 4)
    # 4 steps x 2 windows x 3 unknown frames x 3 channels x 4 x 6, all of them clipped
    assert lines[0] == "num_inference_steps=4"
    assert lines[1].startswith("clipped=1728 values (100.000 %; many values clipped: lower the learning rate")
    assert lines[2] == "Final latents range: [3.0000, 3.0000]"
    assert lines[3] == "Denormalized: [3.0000, 3.0000] mean 3.0000 std 0.0000"
    assert lines[4] == "Predicted frames range: [2.0000, 2.0000]"  # 3 * 0.5 + 0.5
    assert make(follow_the_noise).log is None


def test_clip_advice():
    assert "lower the learning rate" in clip_advice(0.3)
    assert "as it should be" in clip_advice(0.01)
    assert "widen to 4" in clip_advice(0.0)


def test_broken_models_do_not_become_dark_videos():
    with pytest.raises(UserError, match="latents are not finite"):
        make(lambda x, *rest: x * torch.nan, clip="static").predict(flat_clip(), 2)

    predictor = make(follow_the_noise)
    predictor.decode = lambda latents: torch.full((2, 3, 3, 16, 24), torch.inf)
    with pytest.raises(UserError, match="decoded values are not finite"):
        predictor.predict(flat_clip(), 2)


@pytest.mark.parametrize(
    "frames, num_frames, message",
    [
        (torch.zeros(3, 3, 16, 16), 2, "uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), 2, "T, 3, H, W"),
        (torch.zeros(3, 16, 16, 3, dtype=torch.uint8), 2, "T, 3, H, W"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 2, "context frames"),
        (torch.zeros(3, 3, 18, 16, dtype=torch.uint8), 2, "18x16"),
        (torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 0, "num_frames"),
    ],
)
def test_bad_input_is_named(frames, num_frames, message):
    with pytest.raises(UserError, match=message):
        make(follow_the_noise).predict(frames, num_frames)


@pytest.mark.parametrize("context, horizon", [(-1, 5), (5, 5)])
def test_a_predictor_needs_unknown_frames(context, horizon):
    p = make(follow_the_noise)
    with pytest.raises(UserError, match="context_frames"):
        Predictor(p.denoiser, p.autoencoder, p.calibration, p.schedule, p.sampling, context, horizon)


@pytest.mark.parametrize(
    "options",
    [{}, {"overlap": 1}, {"stabilization": 0.2}, {"scheme": "keyframes", "stride": 2}, {"scheme": "pyramid"}],
)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_a_rollout_yields_what_predict_returns_at_once(options, sampler):
    predictor, frames = make(follow_the_noise, sampler=sampler), flat_clip()
    options = RolloutOptions(**options)
    whole = predictor.predict(frames, 8, seed=4, options=options)
    pieces = list(predictor.rollout(frames, 8, seed=4, options=options))
    assert whole.shape == (2, 8, 3, 16, 24) and len(pieces) > 1
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert all(not torch.equal(whole[:, t], whole[:, t + 1]) for t in range(7))


@pytest.mark.parametrize("scheme", ["sliding", "keyframes", "pyramid"])
def test_a_rollout_goes_on_with_what_the_model_knows(scheme):
    """The exact continuation of a ramp, whatever the windows: times and known frames belong together."""
    frames, options = flat_clip(), RolloutOptions(scheme, stride=3)
    predicted = make(continue_the_ramp).predict(frames, 7, options=options)
    expected = frames[:, -1:].int() + 10 * torch.arange(1, 8)[None, :, None, None, None]
    assert torch.equal(predicted.int(), expected.expand_as(predicted))


def test_stabilization_noises_predicted_frames_alone():
    levels = []

    def denoiser(x, level, given, frame_times):
        levels.append(level.code[0, :CONTEXT].tolist())
        return follow_the_noise(x, level, given, frame_times)

    predictor = make(denoiser)
    predictor.predict(flat_clip(), 6, options=RolloutOptions(stabilization=0.25))
    there = predictor.schedule.at(torch.tensor(0.25)).code.item()
    assert levels == [[0, 0]] * 4 + [pytest.approx([there, there])] * 4


@pytest.mark.parametrize("scheme", ["sliding", "keyframes", "pyramid"])
def test_a_trajectory_is_the_same_however_many_there_are(scheme):
    predictor, options = make(follow_the_noise, eta=0.5), RolloutOptions(scheme, stride=2)
    frames = flat_clip(batch=3)
    four = predictor.predict(frames, 6, trajectories=4, options=options)
    assert four.shape == (3, 4, 6, 3, 16, 24)
    assert torch.equal(four[:, :2], predictor.predict(frames, 6, trajectories=2, options=options))
    assert torch.equal(four[:, 0], predictor.predict(frames, 6, options=options))
    second = predictor.predict(frames[1], 6, trajectories=4, draws=torch.tensor([1]), options=options)
    assert torch.equal(second, four[1])  # alone, as on another process
    assert len(torch.unique(four.flatten(2), dim=1).unique(dim=0)) == 3 and not torch.equal(four[:, 0], four[:, 1])
    with pytest.raises(UserError, match="trajectories: 0 must be 1 or more"):
        predictor.predict(frames, 6, trajectories=0)


GIVEN = {
    "prediction": [1, 1, 0, 0, 0],
    "interpolation": [1, 0, 0, 0, 1],
    "infilling": [1, 0, 1, 0, 1],
    "generation": [0, 0, 0, 0, 0],
    "nothing to do": [1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("task", GIVEN)
def test_filling_keeps_what_is_given_and_does_not_look_at_the_rest(task):
    predictor, given = make(follow_the_noise), torch.tensor(GIVEN[task]).bool()
    frames = torch.randint(0, 256, (2, HORIZON, 3, 16, 24), dtype=torch.uint8)
    other = frames.clone()
    other[:, ~given] = 7
    filled = predictor.fill(frames, given, seed=2)
    assert filled.dtype == torch.uint8 and torch.equal(filled[:, given], frames[:, given])
    assert torch.equal(filled, predictor.fill(other, given, seed=2))
    assert torch.equal(filled[0], predictor.fill(frames[0], given, seed=2))
    assert task == "nothing to do" or not torch.equal(filled, predictor.fill(frames, given, seed=3))
    several = predictor.fill(frames, given.expand(2, -1), seed=2, trajectories=2)
    assert several.shape == (2, 2, *frames.shape[1:]) and torch.equal(several[:, 0], filled)


def test_filling_tells_the_network_when_frames_are():
    times = torch.tensor([0.0, 0.5, 1.0, 7.0])
    seen = []

    def denoiser(x, level, given, frame_times):
        seen.append((given.clone(), frame_times.clone()))
        return x

    frames = flat_clip(frames=4)
    make(denoiser).fill(frames, torch.tensor([True, False, True, False]), frame_times=times)
    given, frame_times = seen[0]
    assert torch.equal(frame_times, times.expand(2, -1)) and given.tolist() == [[True, False, True, False]] * 2
    with pytest.raises(UserError, match=r"given: expected .*\(4,\).* values, got \(3,\)"):
        make(denoiser).fill(frames, torch.ones(3).bool())


def generator(num_frames, denoiser=follow_the_noise):
    p = make(denoiser)
    return Predictor(p.denoiser, p.autoencoder, p.calibration, p.schedule, p.sampling, 0, num_frames)


def test_a_model_without_context_continues_from_nothing():
    nothing = torch.empty(3, 0, 3, 16, 24, dtype=torch.uint8)
    one, clip = generator(1), generator(5)
    pictures = one.predict(nothing, 1, seed=4)
    assert pictures.shape == (3, 1, 3, 16, 24) and len({picture.numpy().tobytes() for picture in pictures}) == 3
    assert torch.equal(pictures[1:], one.predict(nothing[1:], 1, seed=4, draws=torch.tensor([1, 2])))
    assert one.predict(nothing[0], 1, trajectories=2).shape == (2, 1, 3, 16, 24)
    # What is in the frames that it is handed plays no part, and a clip is what `fill` makes with no frame given.
    assert torch.equal(one.predict(flat_clip(3), 1, seed=4), pictures)
    unknown = torch.zeros(5, dtype=torch.bool)
    assert torch.equal(clip.predict(nothing, 5, 2)[0], clip.fill(flat_clip(1, 5)[0], unknown, 2))
    assert torch.equal(clip.predict(nothing, 3, 2), clip.predict(nothing, 5, 2)[:, :3])
    with pytest.raises(UserError, match="num_frames: 6 is more than the 5 frames that this model generates"):
        clip.predict(nothing, 6)
