"""How capsule layers start, as numbers that a command line and a file can hold; and the constants
of others.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emcaps import PAPER, NearIdentity
from emcaps.checks import check_number


@dataclasses.dataclass(frozen=True)
class NormalInit:
    """An initializer: normal numbers of this mean and standard deviation; two with the same are
    equal.
    """

    mean: float
    stddev: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> jax.Array:
        return self.mean + self.stddev * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class CapsuleInit:
    """How the parameters of a capsule layer start; the defaults are those of the modules.

    Attributes:
        identity: what the identity is multiplied by, as transforms start; with 1 parents agree with
            children at first.
        transform_stddev: of the normal noise that is added to it.
        beta_u, beta_u_stddev: of the cost of one unit of data and pose entry.
        beta_a, beta_a_stddev: of a parent's threshold, in units of cost.

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
            check_number(
                field.name,
                getattr(self, field.name),
                0 if field.name.endswith("stddev") else -np.inf,
            )

    def initializers(self) -> dict[str, Any]:
        """The attributes of `emcaps.CapsNet` for them."""
        return {
            "transform_init": NearIdentity(self.identity, self.transform_stddev),
            "beta_u_init": NormalInit(self.beta_u, self.beta_u_stddev),
            "beta_a_init": NormalInit(self.beta_a, self.beta_a_stddev),
        }


PRESETS = {
    "paper": (PAPER, CapsuleInit(identity=0.0, transform_stddev=0.3)),
    "ibm": (
        dataclasses.replace(
            PAPER, num_iterations=2, field_mass=100.0, min_variance=1e-9, mass_epsilon=1e-9
        ),
        CapsuleInit(identity=0.0, transform_stddev=1.0, beta_a=-1000.0, beta_a_stddev=500.0),
    ),
}
"""The constants of the paper and of IBM for all layers, with the initial values that belong to
them; see documentation/options.md.
"""
