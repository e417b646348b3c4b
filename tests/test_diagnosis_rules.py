"""The rules by themselves: a sound model's measures, and what each fault changes in them."""

import math

import pytest

from vidpred.diagnosis import judge

SOUND = {
    "weights/not_finite": 0, "weights/count": 700_000, "weights/norm_over_recorded": 1, "ema/norm_over_recorded": 1,
    "weights/changed": 0, "weights/moved": 0.06, "ema/changed": 0, "ema/decay": 0.98, "ema/updates": 300,
    "ema/distance": 0.004, "ema/moved_share": 0.99, "ema/stuck": 0,
    "training/steps": 300, "training/planned_steps": 300, "training/one_batch": 0,
    "curve/points": 300, "curve/first": 0.4, "curve/last": 0.08, "curve/last_over_first": 0.2,
    "curve/end": 0.08, "curve/last_over_least": 1.1, "curve/fall_late": 0.12, "curve/fall_middle": 0.38,
    "curve/rate_end_over_peak": 0.01,
    "record/present": 1, "pixels/compared": 4, "pixels/difference": 0, "pixels/difference_reordered": 0.3,
    "pixels/difference_fitted": 0, "pixels/gain": 1, "pixels/offset": 0,
    "vae/difference": 0, "vae/difference_fitted": 0, "vae/gain": 1, "vae/difference_reordered": 0.26,
    "vae/difference_renormalized": 0.9, "vae/recorded_psnr": 27.5, "vae/psnr_on_recorded": 27.5,
    "vae/decoded_psnr": 27.5, "vae/decoded_psnr_reordered": 21, "vae/psnr": 27.5,
    "calibration/difference": 0, "calibration/difference_to_none": 1.3, "calibration/difference_to_twice": 0.8,
    "calibration/difference_to_scaled_twice": 0.7, "calibration/gain": 1, "schedule/difference": 0,
    "x0/difference": 0.0002, "x0/raw_to_averaged": 0.02, "levels/ratio": 0.5, "levels/ratio_least": 0.4,
    "raw_levels/ratio": 0.5, "latents/largest_mean": 0.1, "latents/largest_std": 1.1, "latents/least_std": 0.9,
    "latents/largest_uncertainty": 0.1, "latents/calibrated": 1,
    "data/still": 0, "data/val_still": 0, "data/twins": 0, "data/val_twins": 0, "data/repetition": 0,
    "data/val_repetition": 0, "data/repetition_period": 1, "data/disorder": 0.03, "data/order_contrast": 0.3,
    "data/motion_over_recorded": 1.0,
    "chain/finite": 1, "chain/x0_over_truth": 1.1, "chain/x0_over_truth_late": 1.1, "chain/mse": 0.009,
    "chain/ceiling_mse": 0.0018, "chain/copy_mse": 0.02, "chain/coarse_mse": 0.007, "chain/copy_coarse_mse": 0.02,
    "chain/decoded_copy_coarse_mse": 0.017, "chain/coarse_motion": 0.8, "chain/true_coarse_motion": 28,
    "chain/mean_coarse_mse": 0.021,
    "chain/noise_mse": 1e-5, "chain/coarse_noise_mse": 1e-6, "chain/ceiling_coarse_mse": 0.0006, "chain/detail": 0.8,
    "chain/error": 0.48, "chain/predict_zero": 1.0, "clip/none": 0, "clip/truth_rms": 0, "clip/truth_changed": 0,
    "given/swapped_over_own": 2.6, "given/change": 0.95, "given/worse_certainty": 12, "levels/ratio_noisy": 0.6,
    "levels/over_zero_least": 0.4, "rollout/finite": 1, "rollout/shift": 0, "rollout/contrast": 1.0,
    "rollout/outside": 0,
}  # fmt: skip

FAULTS = {
    "weights_not_finite": {"weights/not_finite": 1},
    "weights_exploded": {"weights/norm_over_recorded": 30, "ema/norm_over_recorded": 30},
    "wrong_channel_order": {"vae/difference": 0.4, "vae/difference_reordered": 0, "vae/difference_fitted": 0.3},
    "wrong_pixel_normalization": {"vae/difference": 0.9, "vae/difference_renormalized": 0, "vae/difference_fitted": 0},
    "latent_scale_missing": {"calibration/difference": 0.6, "calibration/difference_to_none": 0},
    "latent_scale_doubled": {"calibration/difference": 2.0, "calibration/difference_to_twice": 0},
    "vae_not_loaded": {"vae/difference": 1.2, "vae/difference_fitted": 1, "vae/psnr_on_recorded": 9, "vae/psnr": 9},
    "wrong_vae": {"vae/difference": 1.2, "vae/difference_fitted": 1, "vae/difference_reordered": 1.2},
    "wrong_schedule": {"schedule/difference": 0.15},
    "wrong_parameterization": {"x0/difference": 0.5, "x0/difference_otherwise": 0},
    "ema_never_updated": {"ema/updates": 0, "ema/moved_share": 0, "ema/distance": 0.06},
    "ema_not_loaded": {"ema/distance": 0, "ema/changed": 0.02, "x0/difference": 0.1},
    "ema_too_slow": {"ema/moved_share": 0.3, "ema/distance": 0.05, "levels/ratio": 0.9, "ema/decay": 0.9999},
    "data_constant": {"data/still": 1, "data/val_still": 1},
    "data_duplicated": {"data/repetition": 1, "data/val_repetition": 1, "data/repetition_period": 3},
    "data_shuffled": {"data/disorder": 0.97},
    "vae_bottleneck": {"vae/psnr": 19, "chain/coarse_mse": 0.0126, "chain/ceiling_coarse_mse": 0.0119},
    "clip_bound_binds": {"clip/truth_rms": 0.5, "clip/truth_changed": 0.1, "clip/error_over_auto": 1.4},
    "unclipped_x0_explodes": {"clip/none": 1, "chain/x0_over_truth": 3.6, "clip/error_over_auto": 1.1},
    "untrained": {"levels/ratio": 1.1, "levels/ratio_least": 1.0, "curve/last_over_first": 0.97,
                  "curve/fall_middle": 0.02},
    "undertrained": {"levels/ratio_least": 0.7, "chain/coarse_mse": 0.012, "curve/rate_end_over_peak": 1,
                     "curve/fall_middle": 0.4},
    "loss_plateau": {"levels/ratio_least": 0.66, "chain/coarse_mse": 0.012, "curve/rate_end_over_peak": 1,
                     "curve/fall_middle": 0.02},
    "frozen_output": {"chain/coarse_motion": 0.02},
    "given_frames_ignored": {"given/swapped_over_own": 1.0, "given/change": 0.2, "given/worse_certainty": -0.5,
                             "chain/error": 1.2},
    "rollout_drift": {"rollout/shift": 0.8},
}  # fmt: skip

# Sound models whose measures look unusual.
HEALTHY = {
    "sound": {},
    "overfitted on one batch": {"training/one_batch": 1, "levels/ratio_least": 1.0, "curve/fall_middle": 0.8},
    "constant rate": {"curve/rate_end_over_peak": 1},
    "no average": {"ema/decay": 0, "ema/distance": 0, "ema/moved_share": 1},
    "chance decides": {"chain/coarse_mse": 0.034, "given/swapped_over_own": 1.1, "given/change": 0.4,
                       "chain/error": 1.2, "given/worse_certainty": 6, "levels/ratio_noisy": 0.85,
                       "curve/rate_end_over_peak": 1},
    "a still scene under noise": {"levels/ratio_least": 0.87, "levels/ratio_noisy": 0.87, "chain/copy_mse": 0.0043,
                                  "chain/noise_mse": 0.0021, "chain/true_coarse_motion": 0.4},
    "a moving scene under noise": {"levels/ratio_least": 0.7, "chain/coarse_mse": 0.005, "chain/noise_mse": 0.001},
    "a thousand slow videos behind an ordinary VAE": {"chain/coarse_mse": 4e-4, "chain/ceiling_coarse_mse": 3e-4},
    "static camera": {"chain/copy_coarse_mse": 1e-4, "chain/decoded_copy_coarse_mse": 1e-4, "chain/coarse_mse": 1e-4,
                      "chain/true_coarse_motion": 0.8, "chain/coarse_motion": 0.01},
    "noise": {"data/disorder": 0.6, "data/order_contrast": 0.04, "levels/ratio_least": 0.54},
    "other scenery": {"pixels/difference": 0.5, "pixels/difference_fitted": 0.4, "pixels/difference_reordered": 0.5},
    "brighter scenery under the same names": {"pixels/difference": 2.5, "pixels/difference_fitted": 1.0,
                                              "pixels/difference_reordered": 1.2, "pixels/gain": 0.02},
    "a wide estimate under a bound": {"chain/x0_over_truth": 3.6},
}  # fmt: skip


def names(**changes) -> list[str]:
    return [finding.name for finding in judge({**SOUND, **changes})]


@pytest.mark.parametrize("kind", HEALTHY)
def test_sound_models_are_not_accused(kind):
    assert names(**HEALTHY[kind]) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_first_and_says_what_to_do(fault):
    findings = judge({**SOUND, **FAULTS[fault]})
    assert findings[0].name == fault
    assert all(text and "nan" not in text for text in (findings[0].evidence, findings[0].cause, findings[0].change))


def test_a_cause_hides_its_consequences():
    everything_downstream = {**FAULTS["loss_plateau"], **FAULTS["rollout_drift"], **FAULTS["data_shuffled"]}
    assert names(**FAULTS["wrong_vae"], **everything_downstream) == ["wrong_vae"]
    assert names(**everything_downstream) == ["data_shuffled"]


def test_a_loss_that_stands_still_at_a_high_rate_is_the_cause_of_drift():
    still = {**FAULTS["loss_plateau"], **FAULTS["rollout_drift"]}
    assert names(**still) == ["loss_plateau"]
    assert names(**{**still, "curve/rate_end_over_peak": 0}) == ["rollout_drift"]


def test_what_was_not_measured_accuses_nobody():
    assert judge({}) == [] == judge({name: math.nan for name in SOUND}) == judge({name: None for name in SOUND})


def test_weights_that_diverged_in_training_are_named_although_their_record_agrees():
    exploded = {"chain/x0_over_truth_late": 200.0}
    assert names(**exploded) == ["weights_exploded"]
    assert names(**exploded, **{"x0/difference": 0.5, "x0/difference_otherwise": 0.3}) == ["other_code_or_settings"]
    assert names(**{"curve/last_over_least": 9.0, "curve/end": 0.7}) == ["weights_exploded"]
    assert names(**{"curve/last_over_least": 9.0, "curve/end": 0.3}) == []  # what one_batch comes to by chance


def test_a_network_that_computes_something_else_is_not_called_another_parameterization():
    assert names(**{"x0/difference": 0.5, "x0/difference_otherwise": 0.4}) == ["other_code_or_settings"]


@pytest.mark.parametrize("scaling", [0.18, 5.5])
def test_scaling_factors_on_both_sides_of_one(scaling):
    fed = {"vae/difference": 0.8, "vae/difference_fitted": 0.0, "vae/scaling": scaling}
    assert names(**fed, **{"vae/gain": 1 / scaling}) == ["latent_scale_missing"]
    assert names(**fed, **{"vae/gain": scaling}) == ["latent_scale_doubled"]


def test_a_plateau_names_its_cause():
    plateau = {"levels/ratio_least": 0.7, "chain/coarse_mse": 0.012, "curve/fall_middle": 0.02}
    annealed, constant = (judge({**SOUND, **plateau, "curve/rate_end_over_peak": rate})[0] for rate in (0.01, 1))
    assert "too small" in annealed.cause and "never annealed" in constant.cause
    assert names(**plateau, **{"chain/copy_mse": 3e-5}) == []  # nothing but noise is left to learn


def test_any_number_of_steps_may_leave_a_network_untrained():
    stuck = {"levels/ratio_least": 1.0, "curve/last_over_first": 1.0, "curve/fall_middle": 0.0}
    assert names(**stuck, **{"training/steps": 90_000}) == ["untrained"]


def test_without_a_record_rules_that_need_none_still_speak():
    recorded = ("pixels", "vae/d", "vae/recorded", "calibration", "schedule", "x0", "weights/changed")
    bare = {name: value for name, value in SOUND.items() if not name.startswith(recorded)} | {"record/present": 0}
    assert judge(bare) == []
    assert judge({**bare, "latents/calibrated": 0})[0].name == "latent_scale_missing"
    assert judge({**bare, "latents/largest_std": 4})[0].name == "latent_scale_missing"
    assert judge({**bare, "latents/largest_std": 0.2})[0].name == "latent_scale_doubled"
    assert judge({**bare, "vae/psnr": 8})[0].name == "vae_not_loaded"


def test_duplicates_are_found_among_validation_clips_alone():
    assert names(**{"data/val_twins": 1.0}) == ["data_duplicated"]


def test_the_config_of_an_unconditional_model_leaves_predictions_unmeasured():
    measured = {name: value for name, value in SOUND.items() if not name.startswith(("chain/c", "given", "rollout"))}
    assert judge(measured) == []
