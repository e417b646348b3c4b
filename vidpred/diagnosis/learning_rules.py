"""Rules about what a model was trained on, how it is drawn, and what it has learned. See `rules`."""

from typing import Iterator, Protocol

from vidpred.diagnosis.findings import Finding

MOST_CLIPS = 0.8  # of the clips show a fault of the data
DISORDER, ORDER_CONTRAST = 0.75, 0.1
BOTTLENECK_DB, BOTTLENECK_SHARE, BOTTLENECK_COPY = 27.0, 0.5, 0.4
BINDS_RMS, BINDS_COST = 0.05, 1.05
EXPLODES, EXPLODES_COST = 2.5, 1.01
# Of the one-step error that needs no learning, at the best level: above the first one nothing was learned.
LEARNED, HARDLY_LEARNED, HALF_LEARNED = 0.95, 0.62, 0.5
SMALL = 50_000  # weights
POOR, GOOD = 0.8, 0.2  # of the copied frame's squared error, on means over squares of pixels
VISIBLE = 2e-4  # squared error of the copied frame (37 dB) below which copying is all there is
FALLING = 0.2  # of the loss, from a third of the training to its end
ANNEALED = 0.3  # of the peak learning rate
UNFINISHED = 0.6  # of the planned steps
FEW_STEPS = 12
LEARNED_LOSS = 0.7  # of the first loss
FROZEN, SLOW_MOTION, FASTER = 0.05, 0.3, 3.0  # energy of motion; rms changes of data over the recorded ones
LOST = 0.9  # of the one-step error that needs no learning, although the loss has fallen
# Errors over the own one (while the loss still falls, and after), over predicting zero, over no learning.
UNMOVED, FOLLOWS, BLIND, LEARNED_LOOKS = 1.1, 1.35, 0.9, 0.8
# Shift of the mean in deviations, contrast over the given frames', and how sure, in standard errors.
DRIFT, DRIFT_ALTERED, DRIFT_OUTSIDE, ALTERED = (0.3, 1.5, 5.0), (0.1, 1.2, 2.0), 0.1, 0.05


class Known(Protocol):
    notes: dict[str, str]

    def __getitem__(self, name: str) -> float: ...


def training_data(m: Known) -> Iterator[Finding]:
    """Clips that are broken as they are read now."""
    if m["data/still"] > MOST_CLIPS and m["data/val_still"] > MOST_CLIPS:
        yield Finding(
            "fatal",
            "data_constant",
            f"nothing moves in {100 * m['data/still']:.0f} % of the training clips",
            "clips of one frame each, or a reader that always gives the same one",
            "look at the clips (data.root, data.frame_stride); a video model needs clips that move",
        )
    if m["data/twins"] > MOST_CLIPS or m["data/val_twins"] > MOST_CLIPS:
        yield _duplicated(f"{100 * max(m['data/twins'], m['data/val_twins']):.0f} % of the clips are equal to others")
    elif m["data/repetition"] > MOST_CLIPS and m["data/val_repetition"] > MOST_CLIPS:
        yield _duplicated(
            f"{100 * m['data/repetition']:.0f} % of the clips show each frame {m['data/repetition_period']:.0f} times"
        )
    if m["data/disorder"] > DISORDER and m["data/order_contrast"] > ORDER_CONTRAST:
        yield Finding(
            "fatal",
            "data_shuffled",
            f"frames follow each other {100 * (1 - m['data/disorder']):.0f} % as smoothly as they could "
            f"(0 %: as by chance)",
            "the frames of a clip are not in the order of their times",
            "sort the frames by number (frame_10 comes after frame_9), read them in the order of presentation",
        )


def prediction(m: Known) -> Iterator[Finding]:
    """How it is drawn and decoded."""
    share, of_copy = (m["chain/ceiling_mse"] / max(m[f"chain/{name}mse"], 1e-12) for name in ("", "copy_"))
    if m["vae/psnr"] < BOTTLENECK_DB and share > BOTTLENECK_SHARE and of_copy > BOTTLENECK_COPY:
        yield Finding(
            "serious",
            "vae_bottleneck",
            f"the autoencoder alone gives true frames back at {m['vae/psnr']:.1f} dB, {100 * share:.0f} % of the "
            f"prediction's squared error and {100 * of_copy:.0f} % of the copied frame's",
            "the autoencoder loses more than the model does",
            "use another autoencoder, a smaller down factor or larger frames",
        )
    if m["clip/truth_rms"] > BINDS_RMS and m["clip/error_over_auto"] > BINDS_COST:
        yield Finding(
            "fatal",
            "clip_bound_binds",
            f"the bound changes {100 * m['clip/truth_changed']:.1f} % of the values of true latents (rms "
            f"{m['clip/truth_rms']:.2f}); the error is {m['clip/error_over_auto']:.2f} times that with their range",
            "the bound on x0 is narrower than the latents",
            "sampling.clip.kind auto, or a wider sampling.clip.bound",
        )
    if m["clip/none"] == 1 and m["chain/x0_over_truth"] > EXPLODES and m["clip/error_over_auto"] > EXPLODES_COST:
        yield Finding(
            "fatal",
            "unclipped_x0_explodes",
            f"x0 reaches {m['chain/x0_over_truth']:.1f} times the largest latent, and the error is "
            f"{m['clip/error_over_auto']:.2f} times that with a bound",
            "x0 is not bounded where dividing by a small alpha makes it large",
            "sampling.clip.kind auto or static; more sampling steps",
        )


def learning(m: Known) -> Iterator[Finding]:
    """What it has learned."""
    if m["training/one_batch"] == 1:
        return  # it is to know one batch by heart, and nothing of these clips
    floor = min(m["chain/copy_coarse_mse"], m["chain/decoded_copy_coarse_mse"])
    skill = m["chain/coarse_mse"] / max(floor, 1e-12)
    poor = skill > POOR and floor > VISIBLE
    evidence = (
        f"the one-step error is {m['levels/ratio']:.2f} of what needs no learning (at the best level "
        f"{m['levels/ratio_least']:.2f}), the prediction's squared error {skill:.2f} of the copied frame's"
    )
    rising = m["curve/rate_end_over_peak"] > ANNEALED and m["curve/fall_middle"] > FALLING
    if _frozen(m):
        yield _frozen_output(m)
    elif m["levels/ratio_least"] >= LEARNED and not m["training/steps"] >= FEW_STEPS:
        yield _untrained(m, evidence)
    elif _ignored(m, UNMOVED if rising else FOLLOWS):
        yield _given_frames_ignored(m)
    elif rising and (m["levels/ratio_least"] > HARDLY_LEARNED or _unfinished(m, skill) or poor):
        yield _undertrained(m, evidence)
    elif m["levels/ratio_least"] > HARDLY_LEARNED or _stuck(m, poor):
        yield _plateau(m, evidence)
    else:
        yield from _drift(m)


def _frozen(m: Known) -> bool:
    """Whether predictions stand still where clips move, and not for want of training."""
    if not (m["training/steps"] >= FEW_STEPS and m["chain/true_motion"] > 1):
        return False
    motion, learned = m["chain/coarse_motion"], m["curve/last_over_first"] < LEARNED_LOSS
    faster = m["data/val_motion"] > FASTER * m["data/recorded_motion"]
    return motion < FROZEN and (learned or faster) or (
        motion < SLOW_MOTION and (faster or learned and m["levels/ratio_least"] > LOST)
    )


def _ignored(m: Known, follows: float) -> bool:
    """Whether it has learned what clips look like, and not what the given frames say of this one."""
    blind = m["given/swapped_over_own"] < follows and m["chain/error"] > BLIND * m["chain/predict_zero"]
    return blind and m["levels/ratio_least"] < LEARNED_LOOKS


def _stuck(m: Known, poor: bool) -> bool:
    """Half learned, and either of few weights, or at a high rate under which the loss no longer falls."""
    small = m["weights/count"] < SMALL
    flat = m["curve/rate_end_over_peak"] > ANNEALED and m["curve/fall_middle"] < FALLING / 2 and poor
    return m["levels/ratio_least"] > HALF_LEARNED and (small or flat)


def _unfinished(m: Known, skill: float) -> bool:
    """Stopped long before the planned end, with room to improve."""
    return m["training/steps"] < UNFINISHED * m["training/planned_steps"] and skill > GOOD


def _drift(m: Known) -> Iterator[Finding]:
    # Weights that are not those that were trained need less evidence.
    altered = (m["weights/changed"] > 0 or m["ema/changed"] > 0) and m["x0/difference"] > ALTERED
    most_shift, most_contrast, certain = DRIFT_ALTERED if altered else DRIFT
    shift, contrast = abs(m["rollout/last_shift"]), m["rollout/last_contrast"]
    shifted = shift > most_shift and m["rollout/last_shift_certainty"] > certain
    changed = max(contrast, 1 / max(contrast, 1e-9)) > most_contrast and m["rollout/last_contrast_certainty"] > certain
    outside = m["rollout/last_outside"] - m["rollout/first_outside"]
    if m["rollout/finite"] == 0 or shifted or changed or outside > DRIFT_OUTSIDE:
        yield Finding(
            "serious",
            "rollout_drift",
            f"by the fourth window the mean has moved by {shift:.2f} deviations "
            f"({m['rollout/last_shift_certainty']:.0f} standard errors), the contrast is {contrast:.2f} times "
            f"that of the given frames, {100 * outside:.0f} % more values have left [0, 1]",
            "every window passes a small error on to the next",
            "conditioning.context_noise in training and RolloutOptions(stabilization=...) in rollouts; train longer",
        )


def _duplicated(evidence: str) -> Finding:
    return Finding(
        "fatal",
        "data_duplicated",
        evidence,
        "copies of one file under several names, or a video that was saved at a higher rate than it was taken at",
        "remove the copies; data.frame_stride or data.fps as the video was taken",
    )


def _untrained(m: Known, evidence: str) -> Finding:
    return Finding(
        "fatal",
        "untrained",
        f"{evidence}, after {0 if m['training/steps'] != m['training/steps'] else m['training/steps']:.0f} steps",
        "the model is not trained",
        "train it; see whether --overfit_one_batch brings the loss near 0",
    )


def _undertrained(m: Known, evidence: str) -> Finding:
    return Finding(
        "serious",
        "undertrained",
        f"{evidence}; the loss still fell by {100 * m['curve/fall_late']:.0f} % in the last part of training, the "
        f"learning rate is {100 * m['curve/rate_end_over_peak']:.0f} % of its peak",
        "training was stopped while the model still improved",
        "go on: raise training.num_steps and run the same command",
    )


def _plateau(m: Known, evidence: str) -> Finding:
    return Finding(
        "serious",
        "loss_plateau",
        f"{evidence}; the loss fell by {100 * m['curve/fall_late']:.0f} % in the last part of training, detail is "
        f"{m['chain/detail']:.2f} of true frames', the learning rate "
        f"{100 * m['curve/rate_end_over_peak']:.0f} % of its peak, with {m['weights/count']:,.0f} weights",
        "the network is too small, or the learning rate too high and never annealed",
        "training.lr_schedule cosine, a lower training.learning_rate, or a larger network",
    )


def _frozen_output(m: Known) -> Finding:
    return Finding(
        "serious",
        "frozen_output",
        f"predictions move with {100 * m['chain/coarse_motion']:.1f} % of the energy of true clips",
        "the model repeats a given frame: trained on clips that do not move, or for too short a time",
        "train on clips that move as these do (data.frame_stride, data.min_motion)",
    )


def _given_frames_ignored(m: Known) -> Finding:
    return Finding(
        "serious",
        "given_frames_ignored",
        f"with another clip's frames given the error is {m['given/swapped_over_own']:.2f} times the own one",
        "the network learned nothing from the given frames, or does not see them",
        "check that given frames belong to the clip (no shuffling), conditioning.scheme and the network's inputs",
    )
