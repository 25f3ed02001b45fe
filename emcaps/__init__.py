"""Matrix capsules with EM routing (Hinton, Sabour, Frosst 2018) in JAX and Flax."""

from emcaps.capsnet import CapsNet
from emcaps.layers import ClassCaps, ConvCaps, PrimaryCaps, RoutingOptions, near_identity
from emcaps.losses import margin_schedule, spread_loss
from emcaps.receptive_field import ReceptiveField, receptive_field_centers
from emcaps.routing import class_em_routing, conv_em_routing, em_routing, inverse_temperature_schedule
from emcaps.types import Capsules, RoutingResult

__all__ = [
    "CapsNet",
    "Capsules",
    "ClassCaps",
    "ConvCaps",
    "PrimaryCaps",
    "ReceptiveField",
    "RoutingOptions",
    "RoutingResult",
    "class_em_routing",
    "conv_em_routing",
    "em_routing",
    "inverse_temperature_schedule",
    "margin_schedule",
    "near_identity",
    "receptive_field_centers",
    "spread_loss",
]
