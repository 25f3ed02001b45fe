"""How capsule layers route, and how their parameters start: the options of the modules, as frozen records."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import check_bool, check_choice, check_known_number, check_number, check_positive_int
from emcaps.em import COMPETITIONS, INITIAL_ASSIGNMENTS
from emcaps.implementations import IMPLEMENTATIONS
from emcaps.receptive_field import ReceptiveField
from emcaps.types import POSE_SIZE


@dataclasses.dataclass(frozen=True)
class RoutingOptions:
    """How a capsule layer routes; the defaults are the recipe that trains (BUILD_NOTES.md has the evidence).

    Attributes:
        num_iterations: T, M-steps. `ConvCaps` have one where nothing else is said.
        inverse_temperature: lambda, the same in every iteration, because the costs it multiplies are normalised; None is the
            schedule of `em_routing`.
        assignment_temperature: divides log p in the E-step. 16, the number of pose entries, makes it a mean over entries.
        assignment_temperature_rate: 0: the temperature stays as it is. Otherwise each layer learns its own: that number times
            exp(rate * theta), with a parameter theta that starts at 0. Steps of Adam, which have all the same size, change the
            temperature's logarithm `rate` times as fast as other parameters. With one iteration nothing depends on the
            temperature, and none is learned.
        inverse_temperature_rate: the same for the inverse temperature, on which all depends with one iteration too.
        normalize_costs: whether costs are measured in standard deviations over the parent types at a position.
        parent_mass: the mass at which a parent's cost is computed, whatever its share of the children is: `mass_scale` is
            this over the number of children on the map per parent on its map. None, the paper's own cost, has no such scale.
        field_mass: the same with the children that one parent sees, per parent type: IBM's scale. Not both.
        min_variance: added to the variances.
        mass_epsilon: added to a parent's mass where it divides.
        competition, initial_assignments, damping, assignment_gradient, implementation, remat: see `conv_em_routing`.

    Raises:
        TypeError, ValueError: an option is not what it must be (as in `conv_em_routing`); both `parent_mass` and `field_mass` are
            given; `inverse_temperature_rate` without a constant `inverse_temperature` above 0 to start from; or
            `assignment_temperature_rate` without `assignment_gradient`, through which alone it can be learned.
    """

    num_iterations: int = 2
    inverse_temperature: float | None = 1.0
    assignment_temperature: float = 16.0
    assignment_temperature_rate: float = 1.0
    inverse_temperature_rate: float = 0.0
    normalize_costs: bool = True
    parent_mass: float | None = 16.0
    field_mass: float | None = None
    min_variance: float = 5e-4
    mass_epsilon: float = 1e-7
    competition: str = "all"
    initial_assignments: str = "reachable"
    damping: float = 0.0
    assignment_gradient: bool = True
    implementation: str = "streamed"
    remat: bool = False

    def __post_init__(self):
        check_positive_int("num_iterations", self.num_iterations)
        if self.inverse_temperature is not None:
            check_number("inverse_temperature", self.inverse_temperature, 0)
        for name in ("assignment_temperature", "parent_mass", "field_mass", "min_variance", "mass_epsilon"):
            if getattr(self, name) is not None or name not in ("parent_mass", "field_mass"):
                check_number(name, getattr(self, name), 0, open_low=True)
        check_known_number("damping", self.damping, 0, 1, open_high=True)
        for name in ("assignment_temperature_rate", "inverse_temperature_rate"):
            check_known_number(name, getattr(self, name), 0)
        if self.assignment_temperature_rate and not self.assignment_gradient:
            raise ValueError("assignment_temperature_rate needs assignment_gradient; got False")
        if self.inverse_temperature_rate:
            if self.inverse_temperature is None:
                raise ValueError("inverse_temperature_rate needs a constant inverse_temperature to start from; got None")
            check_number("inverse_temperature, where it is learned,", self.inverse_temperature, 0, open_low=True)
        for name in ("normalize_costs", "assignment_gradient", "remat"):
            check_bool(name, getattr(self, name))
        check_choice("competition", self.competition, COMPETITIONS)
        check_choice("initial_assignments", self.initial_assignments, INITIAL_ASSIGNMENTS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        if self.parent_mass is not None and self.field_mass is not None:
            raise ValueError(f"give parent_mass or field_mass, not both; got {self.parent_mass} and {self.field_mass}")

    def learned(self, parameters: Mapping[str, Any]) -> "RoutingOptions":
        """The same with the temperatures that a layer with these parameters has learned, as scalar arrays."""
        temperatures = {}
        for name in self.learns():
            exponent = getattr(self, f"{name}_rate") * parameters[f"{name}_log"]
            temperatures[name] = getattr(self, name) * jnp.exp(exponent)
        return dataclasses.replace(self, **temperatures)

    def learned_by(self, layer: nn.Module) -> "RoutingOptions":
        """The same for a layer that is being called: its parameters for temperatures, scalars, are made here."""
        names = [f"{name}_log" for name in self.learns()]
        return self.learned({name: layer.param(name, lambda _: jnp.zeros(())) for name in names})

    def learns(self) -> list[str]:
        """Which temperatures are learned."""
        tempered = ("assignment_temperature",) if self.num_iterations > 1 else ()
        return [name for name in (*tempered, "inverse_temperature") if getattr(self, f"{name}_rate")]

    def mass_scale(self, field: ReceptiveField, child_types: int, parent_types: int) -> float:
        """The `mass_scale` of a layer of this geometry."""
        if self.parent_mass is not None:
            return self.parent_mass * math.prod(field.output_size) * parent_types / (math.prod(field.map_size) * child_types)
        if self.field_mass is not None:
            return self.field_mass * parent_types / (math.prod(field.kernel_size) * child_types)
        return 1.0

    def keywords(self, field: ReceptiveField, child_types: int, parent_types: int) -> dict:
        """The keyword arguments of the routing functions for a layer of this geometry."""
        inverse_temperature = self.inverse_temperature
        if inverse_temperature is not None:
            inverse_temperature = jnp.full(self.num_iterations, inverse_temperature)
        return dict(
            num_iterations=self.num_iterations,
            inverse_temperature=inverse_temperature,
            min_variance=self.min_variance,
            mass_epsilon=self.mass_epsilon,
            mass_scale=self.mass_scale(field, child_types, parent_types),
            assignment_temperature=self.assignment_temperature,
            normalize_costs=self.normalize_costs,
            competition=self.competition,
            initial_assignments=self.initial_assignments,
            damping=self.damping,
            assignment_gradient=self.assignment_gradient,
            implementation=self.implementation,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class CapsuleInit:
    """How the parameters of a capsule layer start; the defaults belong to those of `RoutingOptions`.

    Attributes:
        identity: transforms are this times the identity, so that at first parents agree with children,
        transform_stddev: + normal(0, this).
        beta_u: the mean of the cost of one unit of data and pose entry,
        beta_u_stddev: and its standard deviation.
        beta_a: the mean of a parent's threshold, in units of cost,
        beta_a_stddev: and its standard deviation.

    Raises:
        TypeError, ValueError: a field is not a finite number, or a standard deviation is negative.
    """

    identity: float = 1.0
    transform_stddev: float = 0.1
    beta_u: float = 0.0
    beta_u_stddev: float = 0.0
    beta_a: float = 0.0
    beta_a_stddev: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_number(field.name, getattr(self, field.name), 0 if field.name.endswith("stddev") else -np.inf)

    def transforms(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Initialiser of transforms `[..., 4, 4]`."""
        identity = jnp.broadcast_to(jnp.eye(POSE_SIZE, dtype=dtype), shape)
        return self.identity * identity + self.transform_stddev * jax.random.normal(key, shape, dtype)

    def betas(self, layer: nn.Module, num_parents: int) -> tuple[jax.Array, jax.Array]:
        """Make the parameters `beta_u` and `beta_a` `[num_parents]` of a layer that is being called."""

        def init(mean: float, stddev: float) -> Callable:
            return lambda key, shape: mean + stddev * jax.random.normal(key, shape)

        beta_u = layer.param("beta_u", init(self.beta_u, self.beta_u_stddev), (num_parents,))
        return beta_u, layer.param("beta_a", init(self.beta_a, self.beta_a_stddev), (num_parents,))


FIXED_TEMPERATURES = {"assignment_temperature_rate": 0.0, "inverse_temperature_rate": 0.0}
"""What `RoutingOptions` were before temperatures could be learned, in files that do not say it."""

PRESETS = {
    "paper": (
        RoutingOptions(
            num_iterations=3,
            inverse_temperature=None,
            assignment_temperature=1.0,
            assignment_temperature_rate=0.0,
            normalize_costs=False,
            parent_mass=None,
        ),
        CapsuleInit(identity=0.0, transform_stddev=0.3),
    ),
    "ibm": (
        RoutingOptions(
            num_iterations=2,
            inverse_temperature=None,
            assignment_temperature=1.0,
            assignment_temperature_rate=0.0,
            normalize_costs=False,
            parent_mass=None,
            field_mass=100.0,
            min_variance=1e-9,
            mass_epsilon=1e-9,
        ),
        CapsuleInit(identity=0.0, transform_stddev=1.0, beta_a=-1000.0, beta_a_stddev=500.0),
    ),
}
"""Constants other than ours: routing of all layers, and the initial values that belong to it, by name. BUILD_NOTES.md says where
the numbers come from."""


def check_settings(routing: RoutingOptions, capsule_init: CapsuleInit) -> None:
    """Raise TypeError unless a layer is given what it needs, which has been checked when it was made."""
    for name, value, kind in (("routing", routing, RoutingOptions), ("capsule_init", capsule_init, CapsuleInit)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {kind.__name__}; got {type(value).__name__}")
