"""Routing by agreement: "Dynamic Routing Between Capsules" (Sabour, Frosst, Hinton 2017), to
compare with.
"""

from emcaps.dynamic.capsnet import DynamicCapsNet, PrimaryVectorCaps, VectorClassCaps
from emcaps.dynamic.decoder import RECONSTRUCTION_WEIGHT, Decoder, reconstruction_loss
from emcaps.dynamic.routing import (
    DynamicRoutingResult,
    class_dynamic_routing,
    dynamic_routing,
    squash,
)

__all__ = [
    "RECONSTRUCTION_WEIGHT",
    "Decoder",
    "DynamicCapsNet",
    "DynamicRoutingResult",
    "PrimaryVectorCaps",
    "VectorClassCaps",
    "class_dynamic_routing",
    "dynamic_routing",
    "reconstruction_loss",
    "squash",
]
