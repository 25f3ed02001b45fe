"""Trained networks, each in one file with all that it takes to use it."""

from emcaps.pretrained.classifier import (
    PRETRAINED,
    Classifier,
    Examples,
    Prediction,
    load_classifier,
    save_classifier,
)
from emcaps.pretrained.views import View, prepare_images

__all__ = [
    "PRETRAINED",
    "Classifier",
    "Examples",
    "Prediction",
    "View",
    "load_classifier",
    "prepare_images",
    "save_classifier",
]
