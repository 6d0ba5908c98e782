"""Prediction with what was trained: masks on the clip's own grid, area curves, ejection fractions."""

from echoplan.inputs import InputClip, find_inputs

from .best_configuration import BestConfiguration, find_best_configuration
from .ensemble import PredictorMember
from .model_selection import ModelChoice, choose_models
from .postprocessing import apply_postprocessing
from .predict_folder import PredictionRun, predict_folder
from .prediction import Prediction
from .predictor import EchoPredictor, default_model

__all__ = [
    "BestConfiguration",
    "EchoPredictor",
    "InputClip",
    "ModelChoice",
    "Prediction",
    "PredictionRun",
    "PredictorMember",
    "apply_postprocessing",
    "choose_models",
    "default_model",
    "find_best_configuration",
    "find_inputs",
    "predict_folder",
]
