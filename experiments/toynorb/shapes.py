"""The fifty toys: ten of each of smallNORB's five categories, each one's parts and proportions drawn from its own random key."""

from functools import cache

import jax

from experiments.toynorb.aircraft import airplane
from experiments.toynorb.creatures import animal, human
from experiments.toynorb.render import Shape
from experiments.toynorb.solids import Dice, assemble
from experiments.toynorb.vehicles import car, truck

CATEGORIES = ("four-legged animals", "human figures", "airplanes", "trucks", "cars")
INSTANCES = 10
SEED = 2004
MAKERS = (animal, human, airplane, truck, car)


@cache
def toy(category: int, instance: int) -> Shape:
    """One of the fifty toys.

    Args:
        category: of `CATEGORIES`.
        instance: from 0 to 9.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), category), instance)
    dice = Dice(key)
    size, heading = dice.between(0.82, 1.0), dice.between(-12, 12)
    shift = dice.between(-0.06, 0.06), dice.between(-0.06, 0.06)
    return assemble(MAKERS[category](dice), size, heading, shift)
