"""Attacks: they stay within bounds, do on simple functions what can be computed by hand, and do not
compile for each epsilon.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.attacks import bim, fgsm, gradient_statistics, pgd, value_and_gradient

SHAPE = (4, 3, 2)
NUMBER = 20
EPSILON = 0.1


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IMAGES = jnp.asarray(np.random.default_rng(1).random((NUMBER, *SHAPE)).astype(np.float32))
KEYS = jax.random.split(jax.random.key(0), NUMBER)
WEIGHTS = jnp.asarray(random(*SHAPE, seed=2))


def linear(images):
    return (images * WEIGHTS).sum((1, 2, 3))


def logits(images):
    """Of three classes, by a network whose second layer is not linear."""
    flat = images.reshape(len(images), -1)
    return jnp.tanh(flat @ random(24, 8, seed=3)) @ random(8, 3, seed=4) + jnp.sin(
        9 * flat
    ) @ random(24, 3, seed=5)


LABELS = logits(IMAGES).argmax(-1)


def loss(images, labels=LABELS):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(images)), labels[:, None], -1)[:, 0]


def targeted(images):
    return -loss(images, (LABELS + 1) % 3)


def pgd_here(objective, images, epsilon, **how):
    return pgd(
        objective,
        images,
        epsilon,
        KEYS[: len(images)],
        **{"num_steps": 4, "num_restarts": 3, **how},
    )


ATTACKS = {"fgsm": fgsm, "bim": functools.partial(bim, num_steps=4), "pgd": pgd_here}
TRACES = []
every_attack = pytest.mark.parametrize("name", ATTACKS)


@functools.cache
def compiled(name, objective):
    """The attack as a function of images and epsilon, which notes in `TRACES` when it is traced."""
    return jax.jit(
        functools.partial(
            ATTACKS[name], lambda images: TRACES.append(objective) or objective(images)
        )
    )


@every_attack
def test_epsilon_0_changes_nothing(name):
    images = IMAGES.at[:, 0, 0, 0].set(jnp.array([0.0, 1.0])[jnp.arange(NUMBER) % 2])
    np.testing.assert_array_equal(compiled(name, loss)(images, 0.0), images)


@every_attack
@pytest.mark.parametrize("epsilon", [0.01, 0.3, 2.0])
def test_images_stay_near_and_images(name, epsilon):
    changed = compiled(name, loss)(IMAGES, epsilon)
    assert (changed.shape, changed.dtype) == (IMAGES.shape, IMAGES.dtype)
    assert changed.min() >= 0 and changed.max() <= 1
    assert 0.2 * min(epsilon, 1) < jnp.abs(changed - IMAGES).max() <= epsilon * (1 + 1e-5)


@every_attack
def test_a_linear_objective_is_maximal_in_one_step(name):
    expected = jnp.clip(IMAGES + EPSILON * jnp.sign(WEIGHTS), 0, 1)
    np.testing.assert_allclose(compiled(name, linear)(IMAGES, EPSILON), expected, atol=1e-6)


@every_attack
def test_accuracy_of_a_linear_classifier_falls_with_epsilon(name):
    scores = linear(IMAGES) - jnp.median(linear(IMAGES))
    attack = jax.jit(
        lambda epsilon: ATTACKS[name](
            lambda images: -jnp.sign(scores) * linear(images), IMAGES, epsilon
        )
    )
    accuracies = []
    for epsilon in (0.0, 0.02, 0.05, 0.1, 0.3):
        changed = linear(attack(epsilon)) - jnp.median(linear(IMAGES))
        accuracies.append(float((changed * scores > 0).mean()))
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == 1 and accuracies[-1] == 0 and len(set(accuracies)) > 2


def test_more_work_makes_a_stronger_attack():
    found = {name: loss(compiled(name, loss)(IMAGES, EPSILON)) for name in ATTACKS}
    assert (found["pgd"] >= found["fgsm"]).all()
    assert (found["pgd"] >= found["bim"] - 1e-5).all()  # takes as many steps
    assert found["pgd"].mean() > found["bim"].mean() > found["fgsm"].mean() > loss(IMAGES).mean()


def test_restarts_are_at_other_places():
    few, many = (
        loss(pgd_here(loss, IMAGES, EPSILON, num_restarts=1)),
        loss(compiled("pgd", loss)(IMAGES, EPSILON)),
    )
    assert (many >= few - 1e-5).all() and (many > few + 1e-2).any()


def test_an_image_is_attacked_without_regard_to_the_others():
    some = slice(0, 5)
    alone = pgd_here(lambda images: loss(images, LABELS[some]), IMAGES[some], EPSILON)
    np.testing.assert_allclose(alone, compiled("pgd", loss)(IMAGES, EPSILON)[some], atol=1e-6)


@every_attack
def test_a_targeted_attack_moves_towards_its_target(name):
    changed = compiled(name, targeted)(IMAGES, EPSILON)
    assert targeted(changed).mean() > targeted(IMAGES).mean() + 0.5
    assert (logits(changed).argmax(-1) == (LABELS + 1) % 3).mean() > 0.2


@every_attack
def test_compiled_attacks_are_those_that_are_not(name):
    np.testing.assert_allclose(
        compiled(name, loss)(IMAGES, EPSILON), ATTACKS[name](loss, IMAGES, EPSILON), atol=1e-6
    )


@every_attack
def test_all_epsilons_are_compiled_once(name):
    attack = compiled(name, loss)
    attack(IMAGES, 0.0)
    traces = len(TRACES)
    for epsilon in (0.05, 0.1):
        attack(IMAGES, epsilon)
    assert 0 < len(TRACES) == traces


@pytest.mark.foolbox
# SciPy to Foolbox.
@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
@pytest.mark.parametrize("epsilon", [0.03, EPSILON])
def test_foolbox_agrees(epsilon):
    foolbox = pytest.importorskip(
        "foolbox", reason="Foolbox is not installed: pip install emcaps[foolbox]"
    )
    theirs = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack(),
        "bim": foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=2.5 / 4, steps=4),
    }
    model = foolbox.JAXModel(logits, bounds=(0, 1))
    targets = (LABELS + 1) % 3
    for name, attack in theirs.items():
        _, expected, _ = attack(model, IMAGES, LABELS, epsilons=epsilon)
        np.testing.assert_allclose(compiled(name, loss)(IMAGES, epsilon), expected, atol=1e-6)
    _, expected, _ = theirs["bim"](
        model, IMAGES, foolbox.criteria.TargetedMisclassification(targets), epsilons=epsilon
    )
    np.testing.assert_allclose(compiled("bim", targeted)(IMAGES, epsilon), expected, atol=1e-6)


# Gradients.


def test_statistics_of_known_gradients():
    """The left of each image counts by 3, the right by nothing; every fourth image by nothing at
    all.
    """
    counts = jnp.where(jnp.arange(NUMBER) % 4 == 0, 0.0, 3.0)
    values, gradients = value_and_gradient(
        lambda images: counts * images[:, :, 0].sum((1, 2)), IMAGES
    )
    np.testing.assert_allclose(values, counts * IMAGES[:, :, 0].sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        gradient_statistics(gradients), (1 - 0.75 / 3, 0.25, 0.75), rtol=1e-6
    )


# Errors.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"images": IMAGES[0]},
            ValueError,
            r"images must have shape \[B, H, W, C\]; got shape \[4, 3, 2\]",
        ),
        (
            {"images": jnp.ones((2, *SHAPE), jnp.uint8)},
            TypeError,
            "images must have a floating point dtype; got uint8",
        ),
        ({"images": IMAGES + 1}, ValueError, r"images must lie in \[0, 1\]; got 1\."),
        ({"epsilon": -0.1}, ValueError, r"epsilon must lie in \[0, inf\); got -0\.1"),
        ({"epsilon": jnp.ones(3)}, ValueError, r"epsilon must be a scalar; got shape \[3\]"),
        ({"step_size": -1.0}, ValueError, r"step_size must lie in \[0, inf\); got -1"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1; got 0"),
        ({"num_steps": 0, "step_size": 0.1}, ValueError, "num_steps must be at least 1; got 0"),
        ({"num_restarts": 0}, ValueError, "num_restarts must be at least 1; got 0"),
        ({"keys": KEYS[:3]}, ValueError, r"keys must have shape \[20\]; got shape \[3\]"),
        (
            {"objective": lambda images: images.sum()},
            ValueError,
            r"objective\(images\) must have shape \[B=20\]; got shape \[\]",
        ),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    given = {
        "objective": loss,
        "images": IMAGES,
        "epsilon": EPSILON,
        "keys": KEYS,
        "num_steps": 2,
        "num_restarts": 2,
    } | changes
    with pytest.raises(error, match=message):
        pgd(**given)
    if not {"keys", "num_restarts"} & changes.keys():
        with pytest.raises(error, match=message):
            bim(
                **{
                    name: value
                    for name, value in given.items()
                    if name not in ("keys", "num_restarts")
                }
            )
