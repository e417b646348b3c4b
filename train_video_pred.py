"""Trains a video-prediction model; with no argument, the quickstart on moving shapes.

    torchrun --nproc_per_node=4 train_video_pred.py
    torchrun --nproc_per_node=4 train_video_pred.py --config configs/config_video_prediction.yaml \
        --data.root /my/videos

The same command again goes on where it stopped. `--help` explains every key, `--print_config` prints them all.
"""

from pathlib import Path

from vidpred.assembly import train
from vidpred.configuration import load_config
from vidpred.errors import door

QUICKSTART = Path(__file__).resolve().parent / "configs" / "quickstart.yaml"


@door
def main() -> None:
    train(load_config(default_file=QUICKSTART))


if __name__ == "__main__":
    main()
