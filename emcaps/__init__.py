"""Matrix capsules with EM routing (Hinton, Sabour, Frosst 2018) in JAX and Flax."""

from emcaps.capsnet import CapsNet, partition_specs
from emcaps.classifier import PRETRAINED, Classifier, Examples, Prediction, load_classifier, save_classifier
from emcaps.diagnosis import RoutingDiagnostics, diagnose, diagnostics, iteration_diagnostics, results_by_iteration
from emcaps.dynamic import DynamicRoutingResult, class_dynamic_routing, dynamic_routing, squash
from emcaps.dynamic_capsnet import DynamicCapsNet, PrimaryVectorCaps, VectorClassCaps
from emcaps.layers import ClassCaps, ConvCaps, PrimaryCaps
from emcaps.losses import margin_loss, margin_schedule, spread_loss
from emcaps.options import PAPER, PRESETS, TRAINABLE, CapsuleInit, RoutingOptions
from emcaps.receptive_field import ReceptiveField, receptive_field_centers
from emcaps.reconstruction import RECONSTRUCTION_WEIGHT, Decoder, reconstruction_loss
from emcaps.routing import class_em_routing, conv_em_routing, em_routing, inverse_temperature_schedule
from emcaps.types import Capsules, RoutingResult
from emcaps.views import View, prepare_images

__version__ = "0.1.0"

__all__ = [
    "PAPER",
    "PRESETS",
    "PRETRAINED",
    "RECONSTRUCTION_WEIGHT",
    "TRAINABLE",
    "CapsNet",
    "CapsuleInit",
    "Capsules",
    "ClassCaps",
    "Classifier",
    "ConvCaps",
    "Decoder",
    "DynamicCapsNet",
    "DynamicRoutingResult",
    "Examples",
    "Prediction",
    "PrimaryCaps",
    "PrimaryVectorCaps",
    "ReceptiveField",
    "RoutingDiagnostics",
    "RoutingOptions",
    "RoutingResult",
    "VectorClassCaps",
    "View",
    "class_dynamic_routing",
    "class_em_routing",
    "conv_em_routing",
    "diagnose",
    "diagnostics",
    "dynamic_routing",
    "em_routing",
    "inverse_temperature_schedule",
    "iteration_diagnostics",
    "load_classifier",
    "margin_loss",
    "margin_schedule",
    "partition_specs",
    "prepare_images",
    "receptive_field_centers",
    "reconstruction_loss",
    "results_by_iteration",
    "save_classifier",
    "spread_loss",
    "squash",
]
