"""Rules about what a model was trained on, how it is drawn, and what it has learned. See `rules`."""

import math
from typing import Iterator, Protocol

from vidpred.diagnosis.findings import Finding

MOST_CLIPS = 0.8  # of the clips show a fault of the data
DISORDER, ORDER_CONTRAST = 0.75, 0.1
BOTTLENECK_DB, BOTTLENECK_SHARE, BOTTLENECK_COPY = 30.0, 0.4, 0.33  # all on means over squares of pixels
BINDS_RMS, BINDS_COST = 0.05, 1.05
EXPLODES, EXPLODES_COST = 2.5, 1.01
# Of the one-step error that needs no learning, at the best level: above the first one nothing was learned; the last is
# for a loss that stands still at a high rate, which is evidence by itself.
LEARNED, HARDLY_LEARNED, HARDLY_LEARNED_FLAT = 0.95, 0.62, 0.56
POOR, FAIR, GOOD = 0.8, 0.45, 0.2  # of the squared error that needs no learning
VISIBLE, OVER_NOISE = 2e-4, 3.0  # that error (37 dB), and over the pixels' noise, below which nothing is to be learned
FALLING = 0.2  # of the loss, from a third of the training to its end
ANNEALED = 0.3  # of the peak learning rate
UNFINISHED = 0.6  # of the planned steps
HARDLY_MOVED = 0.015  # of the norm of the weights: no loss stands still after so short a way
LEARNED_LOSS, FALLEN = 0.7, 0.8  # of the first loss: it knows what clips look like; it is not untrained
FROZEN, SLOW_MOTION, FASTER = 0.05, 0.3, 3.0  # energy of motion; rms changes of data over the recorded ones
LOST = 0.9  # of the one-step error that needs no learning, although the loss has fallen
# Of what the clips differ by, standard errors, of predicting zero, of the one-step error that needs no given frames.
UNMOVED, SURE, BLIND, LEARNED_LOOKS = 0.6, 3.0, 0.9, 0.9
DRIFT, WIDENED, OUTSIDE = 0.15, 1.4, 0.1  # the sure part, beyond that of true clips


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
    lost = max(m["chain/ceiling_coarse_mse"] - m["chain/coarse_noise_mse"], 1e-12)
    share, of_copy = (lost / max(m[f"chain/{name}coarse_mse"], 1e-12) for name in ("", "decoded_copy_"))
    decibels = -10 * math.log10(lost) if lost == lost else math.nan
    if decibels < BOTTLENECK_DB and share > BOTTLENECK_SHARE and of_copy > BOTTLENECK_COPY:
        yield Finding(
            "serious",
            "vae_bottleneck",
            f"without noise and fine detail the autoencoder alone gives true frames back at {decibels:.1f} dB, "
            f"{100 * share:.0f} % of the prediction's squared error and {100 * of_copy:.0f} % of the copied frame's",
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
    floor = min(m[f"chain/{name}_coarse_mse"] for name in ("copy", "decoded_copy", "mean"))
    skill = m["chain/coarse_mse"] / max(floor, 1e-12)
    # One sample of an uncertain future has twice the squared error of its mean, which one step from noise shows.
    poor = min(skill, m["levels/ratio_noisy"] ** 2) > POOR
    room = floor > VISIBLE and m["chain/copy_mse"] > OVER_NOISE * m["chain/noise_mse"]
    evidence = (
        f"the one-step error is {m['levels/ratio']:.2f} of what needs no learning (at the best level "
        f"{m['levels/ratio_least']:.2f}), the prediction's squared error {skill:.2f} of the copied frame's"
    )
    # Noise of pixels that nobody can predict makes one-step errors large, and is averaged away in the skill.
    hardly = skill > FAIR and m["levels/ratio_least"] > (HARDLY_LEARNED_FLAT if _flat(m) else HARDLY_LEARNED)
    if _frozen(m):
        yield _frozen_output(m)
    elif _ignored(m):
        yield _given_frames_ignored(m)
    elif m["levels/ratio_least"] >= LEARNED and not _has_fallen(m):
        yield _untrained(m, evidence)
    elif room and _rising(m) and (hardly or poor or _unfinished(m, skill)):
        yield _undertrained(m, evidence)
    elif room and hardly and _flat(m):
        yield _plateau(m, evidence)
    elif _drifts(m):
        yield _drift(m)
    elif room and (hardly or poor and _flat(m)):
        yield _plateau(m, evidence)


def _has_fallen(m: Known) -> bool:
    return m["curve/last_over_first"] < FALLEN or m["curve/fall_middle"] > FALLING


def _rising(m: Known) -> bool:
    """Whether it would improve if it went on."""
    young = m["weights/moved"] < HARDLY_MOVED and m["curve/last_over_first"] < 1
    return m["curve/rate_end_over_peak"] > ANNEALED and (m["curve/fall_middle"] > FALLING or young)


def _flat(m: Known) -> bool:
    return m["curve/rate_end_over_peak"] > ANNEALED and m["curve/fall_middle"] < FALLING / 2


def _frozen(m: Known) -> bool:
    """Whether predictions stand still where clips move, and not for want of training."""
    if not m["chain/true_coarse_motion"] > 1:
        return False
    motion, learned = m["chain/coarse_motion"], m["curve/last_over_first"] < LEARNED_LOSS
    faster = m["data/motion_over_recorded"] > FASTER
    return motion < FROZEN and (learned or faster) or (
        motion < SLOW_MOTION and (faster or learned and m["levels/ratio_least"] > LOST)
    )


def _ignored(m: Known) -> bool:
    """Whether it has learned what clips look like, and not what the given frames say of this one."""
    blind = m["given/change"] < UNMOVED and m["given/worse_certainty"] < SURE
    unknowing = m["chain/error"] > BLIND * m["chain/predict_zero"]
    return blind and unknowing and m["levels/over_zero_least"] < LEARNED_LOOKS


def _unfinished(m: Known, skill: float) -> bool:
    """Stopped long before the planned end, with room to improve."""
    return m["training/steps"] < UNFINISHED * m["training/planned_steps"] and skill > GOOD


def _drifts(m: Known) -> bool:
    moved = m["rollout/shift"] > DRIFT or m["rollout/contrast"] > WIDENED or m["rollout/outside"] > OUTSIDE
    return m["rollout/finite"] == 0 or moved


def _drift(m: Known) -> Finding:
    return Finding(
        "serious",
        "rollout_drift",
        f"from the first to the fourth window the mean of a channel has moved by at least {m['rollout/shift']:.2f} "
        f"deviations, its contrast by a factor of at least {m['rollout/contrast']:.2f} (three standard errors "
        f"taken off), and {100 * m['rollout/outside']:.0f} % more values have left [0, 1]",
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
        f"{evidence}, after {0 if math.isnan(m['training/steps']) else m['training/steps']:.0f} steps",
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
    figures = (
        f"{evidence}; the loss fell by {100 * m['curve/fall_late']:.0f} % in the last part of training, detail is "
        f"{m['chain/detail']:.2f} of true frames'"
    )
    if m["curve/rate_end_over_peak"] > ANNEALED:
        return Finding(
            "serious",
            "loss_plateau",
            f"{figures}, the learning rate is {100 * m['curve/rate_end_over_peak']:.0f} % of its peak",
            "the learning rate is too high to go further down, and was never annealed",
            "training.lr_schedule cosine, or a lower training.learning_rate",
        )
    return Finding(
        "serious",
        "loss_plateau",
        f"{figures}, with {m['weights/count']:,.0f} weights, and the learning rate was annealed",
        "the network is too small for these clips, or was trained for too short a time",
        "a larger network, or more steps",
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
        f"with another clip's frames given the error is {m['given/swapped_over_own']:.2f} times the own one, and the "
        f"prediction changes by {100 * m['given/change']:.0f} % of what the clips differ by",
        "the network learned nothing from the given frames, or does not see them",
        "check that given frames belong to the clip (no shuffling), conditioning.scheme and the network's inputs",
    )
