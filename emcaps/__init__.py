"""Matrix capsules with EM routing (Hinton, Sabour, Frosst 2018) in JAX and Flax."""

from emcaps.types import Capsules, RoutingResult
from emcaps.receptive_field import ReceptiveField, receptive_field_centers
from emcaps.routing import class_em_routing, conv_em_routing, em_routing, inverse_temperature_schedule
from emcaps.layers import ClassCaps, ConvCaps, PrimaryCaps, RoutingOptions, near_identity
from emcaps.capsnet import CapsNet
from emcaps.losses import margin_schedule, spread_loss

__all__ = [
    "Capsules",
    "RoutingResult",
    "ReceptiveField",
    "receptive_field_centers",
    "inverse_temperature_schedule",
    "em_routing",
    "conv_em_routing",
    "class_em_routing",
    "RoutingOptions",
    "near_identity",
    "PrimaryCaps",
    "ConvCaps",
    "ClassCaps",
    "CapsNet",
    "spread_loss",
    "margin_schedule",
]
