"""The fifty toys: ten of each of smallNORB's five categories, each one's parts and proportions
drawn from its own random key.
"""

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
    """One of the fifty toys, or one like it.

    Of a category's ten, each is of another variant, 0 to 9: a list of kinds with repetitions. All
    else about it is drawn at random. Instances 10 to 19 are of the same variants once more, and so
    on.

    Args:
        category: of `CATEGORIES`.
        instance: from 0.
    """
    key = jax.random.fold_in(jax.random.key(SEED), category)
    variant = int(jax.random.permutation(key, INSTANCES)[instance % INSTANCES])
    dice = Dice(jax.random.fold_in(key, instance))
    size, heading = dice.between(0.78, 1.0), dice.between(-20, 20)
    shift = dice.between(-0.06, 0.06), dice.between(-0.06, 0.06)
    return assemble(MAKERS[category](dice, variant), size, heading, shift)
