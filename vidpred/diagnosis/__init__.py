"""Diagnosis: what a model does at every noise level, and findings that name what is wrong with it."""

from vidpred.diagnosis.examination import Examination, examine
from vidpred.diagnosis.findings import Finding, verdict
from vidpred.diagnosis.inference import InferenceCheck, check_inference
from vidpred.diagnosis.report import examination_lines, results_folder, save_plot
from vidpred.diagnosis.subject import Subject, subject_from_checkpoint, validation_clips, video_clip

__all__ = [
    "Examination",
    "Finding",
    "InferenceCheck",
    "Subject",
    "check_inference",
    "examination_lines",
    "examine",
    "results_folder",
    "save_plot",
    "subject_from_checkpoint",
    "validation_clips",
    "verdict",
    "video_clip",
]
