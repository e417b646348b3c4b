"""The model that a tool examines."""

from pathlib import Path

from vidpred import distributed
from vidpred.assembly.prediction_parts import build_predictor, calibrate
from vidpred.autoencoders import build_autoencoder
from vidpred.checkpoint_store import newest_run
from vidpred.configuration import load_config
from vidpred.data import build_dataset
from vidpred.diagnosis import Subject, subject_from_checkpoint

# Of the default preset, as much as an untrained model needs to be looked at: rendering more would take longer.
FEW_CLIPS = ["--data.num_clips=64", "--data.num_val_clips=16", "--data.num_test_clips=1"]


def open_subject(checkpoint: Path | None, preset: Path, device: str = "auto") -> Subject:
    """The model that a tool examines: `checkpoint`, else the newest run under runs/, else `preset` untrained.

    `preset` is a configuration file of rendered shapes. Raises UserError.
    """
    path = checkpoint or newest_run("runs")
    if path is not None:
        return subject_from_checkpoint(path, device)
    config = load_config(FEW_CLIPS, preset)
    chosen = distributed.choose_device(device)
    autoencoder = build_autoencoder(config.autoencoder).to(chosen)
    calibration = calibrate(config, build_dataset(config.data, "train", config.seed), autoencoder, chosen)
    predictor = build_predictor(config, autoencoder, calibration, chosen)
    predictor.denoiser.eval().requires_grad_(False)
    return Subject(
        title=f"untrained model of {preset.name} (no run under {Path('runs').absolute()})",
        predictor=predictor, weights=predictor.denoiser.network.state_dict(), averaged=None, ema_updates=None,
        data=config.data, conditioning=config.conditioning, seed=config.seed, folder=Path.cwd(), name="untrained",
    )
