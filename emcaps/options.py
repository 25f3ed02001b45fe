"""How EM routing is done, as a frozen record."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import (
    check_bool,
    check_choice,
    check_floating,
    check_known_number,
    check_number,
    check_positive_int,
    check_range,
)
from emcaps.implementations import IMPLEMENTATIONS
from emcaps.precision import common_dtype
from emcaps.procedure import COMPETITIONS, INITIAL_ASSIGNMENTS
from emcaps.receptive_field import ReceptiveField


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """How EM routing is done, for functions and modules alike.

    The defaults are the recipe that trains, `TRAINABLE` (the evidence is in design/recipe.md of the
    documentation); the paper's procedure is `PAPER`. All numbers that are not marked static, which
    shape the compiled program, may be scalar arrays, traced ones too. A record with arrays has no
    hash, and cannot be the static argument of a compiled function.

    Attributes:
        num_iterations: T >= 1 M-steps, with T - 1 E-steps between them. Static.
        inverse_temperature: lambda >= 0; a number for all iterations, an array `[T]`, or None: the
            released code's schedule, see `inverse_temperature_schedule`.
        inverse_temperature_rate: >= 0. With 0 lambda stays as it is. Otherwise each layer of a
            network learns its own: the number that is given times exp(rate * theta), with a
            parameter theta that starts at 0. Steps of Adam, which have all the same size, change
            its logarithm `rate` times as fast as other parameters. Functions, which have no
            parameters, take temperatures as they are given. Static.
        assignment_temperature: > 0, divides log p in the E-step. 1 is the paper's EM; 16, the
            number of pose entries, makes it a mean over entries, with softer assignments.
        assignment_temperature_rate: >= 0. How fast each layer learns its assignment temperature, as
            `inverse_temperature_rate` for lambda. With one iteration nothing depends on this
            temperature, and none is learned. Static.
        normalize_costs: measure costs in standard deviations over the parent types at a position
            (see `em.fit_gaussians`); the paper's procedure does not. Static.
        mass_scale: > 0, multiplies a parent's mass in its cost. None: 1, the paper's own cost, or
            what one of the next two makes of the layer's size.
        parent_mass: > 0, the mass at which a parent's cost is computed, whatever its share of the
            children is: `mass_scale` is this over the number of children on the map per parent on
            its map.
        field_mass: > 0, IBM's scale: `mass_scale` is this over the number of children that one
            parent sees, per parent type.
        min_variance: > 0, added to every variance.
        mass_epsilon: > 0, added to a parent's mass where it divides.
        competition: among which parents a child divides itself. `"all"`: all that it reaches, as in
            the paper. `"types"`: only the types at one position, for each position anew, as most
            public code does. `"positions"`: for each type anew, the positions whose receptive
            fields overlap at the child, as the released code does. Static.
        initial_assignments: `"reachable"`: at first each child divides itself evenly among the
            parents that it reaches, as in the paper; `"types"`: 1 / J for each parent, as in the
            released code. Static.
        damping: in [0, 1), how much of an iteration's means is kept in the next one's: mean = (1 -
            damping) new + damping old, from 0 at first, and the variance is about the damped mean.
            The paper has none, the released code 0.1. Static.
        assignment_gradient: whether derivatives go through the E-step; False makes the assignments
            constants. Static.
        implementation: how the votes are held where children make them. `"streamed"`: recomputed
            where they are used and never stored, several times faster, for gradients of first order
            in reverse mode; in chunks in programs for CPUs, fused into reductions in those for GPUs
            and TPUs. `"kernels"`: as `"streamed"`, but in float32 on NVIDIA GPUs by hand-written
            kernels, several times faster still; a program with these cannot be exported. `"fused"`:
            the accelerators' form on every platform. `"dense"`: in memory, differentiable to any
            order in either mode. Static.
        remat: whether a block of the batch is routed again in the backward pass, in place of
            keeping its assignments from the forward pass: slower, in less memory. Static.

    Raises:
        TypeError, ValueError: an option is not as above; more than one of `mass_scale`,
            `parent_mass` and `field_mass` is given; `inverse_temperature_rate` without a number
            above 0 to start from; or an assignment temperature that is to be learned without
            `assignment_gradient`, through which alone it can be.
    """

    num_iterations: int = 2
    inverse_temperature: float | None = 1.0
    inverse_temperature_rate: float = 0.0
    assignment_temperature: float = 16.0
    assignment_temperature_rate: float = 1.0
    normalize_costs: bool = True
    mass_scale: float | None = None
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
        for name in ("assignment_temperature_rate", "inverse_temperature_rate"):
            check_known_number(name, getattr(self, name), 0)
        self._check_inverse_temperature()
        for name in ("assignment_temperature", "min_variance", "mass_epsilon", *self._masses()):
            check_number(name, getattr(self, name), 0, open_low=True)
        check_known_number("damping", self.damping, 0, 1, open_high=True)
        for name in ("normalize_costs", "assignment_gradient", "remat"):
            check_bool(name, getattr(self, name))
        check_choice("competition", self.competition, COMPETITIONS)
        check_choice("initial_assignments", self.initial_assignments, INITIAL_ASSIGNMENTS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        if "assignment_temperature" in self.learns() and not self.assignment_gradient:
            raise ValueError(
                "assignment_temperature_rate must be 0 without assignment_gradient; got "
                "assignment_gradient False"
            )
        if len(self._masses()) > 1:
            given = " and ".join(f"{name} {value}" for name, value in self._masses().items())
            raise ValueError(f"give one of mass_scale, parent_mass and field_mass; got {given}")

    def _check_inverse_temperature(self) -> None:
        given: Any = self.inverse_temperature
        if is_array := getattr(given, "ndim", 0) > 0:
            check_floating("inverse_temperature", given)
            if np.shape(given) != (self.num_iterations,):
                raise ValueError(
                    f"inverse_temperature must be a number, or have shape [{self.num_iterations}], "
                    f"one for each iteration; got shape {list(np.shape(given))}"
                )
            check_range("inverse_temperature", given, 0)
        elif given is not None:
            check_number("inverse_temperature", given, 0)
        if self.inverse_temperature_rate:
            if given is None or is_array:
                got = "None" if given is None else f"shape {list(np.shape(given))}"
                raise ValueError(
                    "inverse_temperature_rate needs a constant inverse_temperature to start from; "
                    f"got {got}"
                )
            check_number("inverse_temperature, where it is learned,", given, 0, open_low=True)

    def _masses(self) -> dict[str, float]:
        """Which of the three ways to scale a parent's mass are given."""
        masses = {
            "mass_scale": self.mass_scale,
            "parent_mass": self.parent_mass,
            "field_mass": self.field_mass,
        }
        return {name: mass for name, mass in masses.items() if mass is not None}

    def layer_mass_scale(self, field: ReceptiveField, child_types: int, parent_types: int) -> float:
        """The `mass_scale` of a layer with these receptive fields, and so many types of children
        and of parents.
        """
        # One number of Python each, so that a scalar of few bits does not overflow on its way.
        if self.parent_mass is not None:
            parents = math.prod(field.output_size) * parent_types
            return self.parent_mass * (parents / (math.prod(field.map_size) * child_types))
        if self.field_mass is not None:
            return self.field_mass * (parent_types / (math.prod(field.kernel_size) * child_types))
        return 1.0 if self.mass_scale is None else self.mass_scale

    def shortened(self, num_iterations: int) -> "RoutingOptions":
        """The same with only the first so many iterations, at most as many as there are."""
        schedule: Any = self.inverse_temperature
        if getattr(schedule, "ndim", 0):
            schedule = schedule[:num_iterations]
        return dataclasses.replace(
            self, num_iterations=num_iterations, inverse_temperature=schedule
        )

    def learns(self) -> list[str]:
        """Which temperatures a layer of a network learns."""
        tempered = ("assignment_temperature",) if self.num_iterations > 1 else ()
        return [
            name for name in (*tempered, "inverse_temperature") if getattr(self, f"{name}_rate")
        ]

    def learned(self, parameters: Mapping[str, Any]) -> "RoutingOptions":
        """The same with the temperatures that a layer with these parameters has learned, as scalar
        arrays, in at least float32.

        The parameters are those of a capsule layer, a scalar `NAME_log` for each name of
        `learns()`; raises KeyError where one is missing.
        """
        temperatures = {}
        for name in self.learns():
            theta = parameters[f"{name}_log"]
            theta = theta.astype(common_dtype(theta.dtype, jnp.float32))
            exponent = getattr(self, f"{name}_rate") * theta
            temperatures[name] = getattr(self, name) * jnp.exp(exponent)
        return dataclasses.replace(self, **temperatures)


class RoutingChanges(TypedDict, total=False):
    """The keywords with which functions change fields of `RoutingOptions`, for type checkers."""

    num_iterations: int
    inverse_temperature: jax.typing.ArrayLike | None
    inverse_temperature_rate: float
    assignment_temperature: jax.typing.ArrayLike
    assignment_temperature_rate: float
    normalize_costs: bool
    mass_scale: jax.typing.ArrayLike | None
    parent_mass: jax.typing.ArrayLike | None
    field_mass: jax.typing.ArrayLike | None
    min_variance: jax.typing.ArrayLike
    mass_epsilon: jax.typing.ArrayLike
    competition: str
    initial_assignments: str
    damping: float
    assignment_gradient: bool
    implementation: str
    remat: bool


TRAINABLE = RoutingOptions()
"""The recipe that trains, with a temperate E-step and costs in standard deviations.

Its evidence is in design/recipe.md of the documentation.
"""

PAPER = RoutingOptions(
    num_iterations=3,
    inverse_temperature=None,
    assignment_temperature=1.0,
    assignment_temperature_rate=0.0,
    normalize_costs=False,
    parent_mass=None,
)
"""Procedure 1 as the paper has it, with lambda as in the released code."""


EARLIER = {"assignment_temperature_rate": 0.0, "inverse_temperature_rate": 0.0, "mass_scale": None}
"""What `RoutingOptions` were before there were such fields, in files that do not say it."""
