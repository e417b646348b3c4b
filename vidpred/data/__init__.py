"""Clips: `build_dataset` makes a split, `training_loader` and `evaluation_batches` give its ClipBatches."""

from vidpred.data.arrays import ArraysConfig
from vidpred.data.clips import Clip, ClipBatch, ClipDataset, ClipError
from vidpred.data.config import DATASETS, ClipConfig, FolderConfig, build_dataset
from vidpred.data.evaluation_batches import clip_numbers, evaluation_batches, evenly_spaced_clips, require_half
from vidpred.data.frame_folder import FrameFolderConfig
from vidpred.data.image_folder import ImageFolderConfig
from vidpred.data.item_conditions import read_actions, read_metadata
from vidpred.data.loading import ClipLoader
from vidpred.data.mixture import MixedClips, MixtureConfig, sample_clips, training_loader
from vidpred.data.mnist import MnistConfig
from vidpred.data.moving_digits import DigitTracks, MovingDigitsConfig, digit_tracks
from vidpred.data.picture import PictureConfig
from vidpred.data.pushed_shapes import PushedScene, PushedShapesConfig, pushed_scene
from vidpred.data.shapes import ShapesConfig
from vidpred.data.video_folder import VideoFolderConfig

__all__ = [
    "DATASETS",
    "ArraysConfig",
    "Clip",
    "ClipBatch",
    "ClipConfig",
    "ClipDataset",
    "ClipError",
    "ClipLoader",
    "DigitTracks",
    "FolderConfig",
    "FrameFolderConfig",
    "ImageFolderConfig",
    "MixedClips",
    "MixtureConfig",
    "MnistConfig",
    "MovingDigitsConfig",
    "PictureConfig",
    "PushedScene",
    "PushedShapesConfig",
    "ShapesConfig",
    "VideoFolderConfig",
    "build_dataset",
    "clip_numbers",
    "digit_tracks",
    "evaluation_batches",
    "evenly_spaced_clips",
    "pushed_scene",
    "read_actions",
    "read_metadata",
    "require_half",
    "sample_clips",
    "training_loader",
]
