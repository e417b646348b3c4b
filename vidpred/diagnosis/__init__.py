"""Diagnosis: what a model does at every noise level, and findings that name what is wrong with it."""

from vidpred.diagnosis.diagnose import Diagnosis, diagnose, diagnose_subject
from vidpred.diagnosis.findings import Finding, verdict
from vidpred.diagnosis.inference import InferenceCheck, check_inference
from vidpred.diagnosis.level_errors import level_errors
from vidpred.diagnosis.plot import save_plot
from vidpred.diagnosis.report import diagnosis_lines, results_folder, summary
from vidpred.diagnosis.rules import judge
from vidpred.diagnosis.sampler_comparison import SamplerComparison, compare_samplers
from vidpred.diagnosis.sampler_report import sampler_lines, save_sampler_plot
from vidpred.diagnosis.subject import Subject, subject_from_checkpoint, validation_clips, video_clip

__all__ = [
    "Diagnosis",
    "Finding",
    "InferenceCheck",
    "SamplerComparison",
    "Subject",
    "check_inference",
    "compare_samplers",
    "diagnose",
    "diagnose_subject",
    "diagnosis_lines",
    "judge",
    "level_errors",
    "results_folder",
    "sampler_lines",
    "save_plot",
    "save_sampler_plot",
    "subject_from_checkpoint",
    "summary",
    "validation_clips",
    "verdict",
    "video_clip",
]
