"""Matrix capsules with EM routing (Hinton, Sabour, Frosst 2018) in JAX and Flax.

Beside the names here: `emcaps.diagnostics` says how routing goes, `emcaps.pretrained` has networks
that are trained, and `emcaps.dynamic` the routing before this one, "Dynamic Routing Between
Capsules", to compare with.
"""

from emcaps import diagnostics, dynamic, pretrained
from emcaps.capsnet import CapsNet, partition_specs
from emcaps.initializers import NearIdentity
from emcaps.layers import ClassCaps, ConvCaps, PrimaryCaps
from emcaps.losses import margin_loss, margin_schedule, spread_loss
from emcaps.options import PAPER, TRAINABLE, RoutingOptions
from emcaps.receptive_field import ReceptiveField, receptive_field_centers
from emcaps.routing import (
    class_em_routing,
    conv_em_routing,
    em_routing,
    inverse_temperature_schedule,
)
from emcaps.types import Capsules, RoutingResult

__version__ = "0.1.0"

__all__ = [
    "PAPER",
    "TRAINABLE",
    "CapsNet",
    "Capsules",
    "ClassCaps",
    "ConvCaps",
    "NearIdentity",
    "PrimaryCaps",
    "ReceptiveField",
    "RoutingOptions",
    "RoutingResult",
    "class_em_routing",
    "conv_em_routing",
    "diagnostics",
    "dynamic",
    "em_routing",
    "inverse_temperature_schedule",
    "margin_loss",
    "margin_schedule",
    "partition_specs",
    "pretrained",
    "receptive_field_centers",
    "spread_loss",
]
