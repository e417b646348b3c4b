"""Diagnosis: what a model does at every noise level, and findings that name what is wrong with it."""

from vidpred.diagnosis.examination import Examination, examine
from vidpred.diagnosis.findings import Finding, verdict
from vidpred.diagnosis.inference import InferenceCheck, check_inference
from vidpred.diagnosis.level_errors import level_errors
from vidpred.diagnosis.report import examination_lines, results_folder, save_plot
from vidpred.diagnosis.sampler_comparison import SamplerComparison, compare_samplers
from vidpred.diagnosis.sampler_report import sampler_lines, save_sampler_plot
from vidpred.diagnosis.subject import Subject, subject_from_checkpoint, validation_clips, video_clip

__all__ = [
    "Examination",
    "Finding",
    "InferenceCheck",
    "SamplerComparison",
    "Subject",
    "check_inference",
    "compare_samplers",
    "examination_lines",
    "examine",
    "level_errors",
    "results_folder",
    "sampler_lines",
    "save_plot",
    "save_sampler_plot",
    "subject_from_checkpoint",
    "validation_clips",
    "verdict",
    "video_clip",
]
