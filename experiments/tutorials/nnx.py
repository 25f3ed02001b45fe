# %% [markdown]
# # Capsules in Flax NNX
#
# The modules of `emcaps` are of Flax Linen. A bridge makes NNX modules of them, whose parameters
# are attributes that an `nnx.Optimizer` changes in place. Here a `CapsNet` is part of an NNX
# module, and learns to tell bars apart, on one CPU in less than a minute:
#
#     python -m experiments.tutorials.nnx

# %% [markdown]
# ## Bars to tell apart
#
# A bar in noise, which lies, stands, or leans to one side or the other.

# %%
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from emcaps import CapsNet, RoutingOptions, spread_loss

SIDE, CLASSES = 14, ("lying", "leaning right", "standing", "leaning left")


def batch(key, number):
    """Images `[number, SIDE, SIDE, 1]` in [0, 1] and their labels."""
    label_key, place_key, noise_key = jax.random.split(key, 3)
    labels = jax.random.randint(label_key, (number,), 0, len(CLASSES))
    angle = (labels * jnp.pi / len(CLASSES))[:, None, None]
    place = jax.random.uniform(place_key, (number, 1, 1), minval=-0.3, maxval=0.3)
    axis = jnp.linspace(-1, 1, SIDE)
    x, y = jnp.meshgrid(axis, -axis)
    distance = jnp.abs(y * jnp.cos(angle) - x * jnp.sin(angle) - place)
    noise = 0.1 * jax.random.normal(noise_key, (number, SIDE, SIDE))
    return jnp.clip(jnp.where(distance < 0.2, 0.9, 0.0) + noise, 0, 1)[..., None], labels


# %% [markdown]
# ## A module of NNX around a module of Linen
#
# `nnx.bridge.ToNNX` wraps the network. A Linen module finds out the shapes of its parameters when
# it is first called, so `lazy_init` is given an image. What is wrapped gives what `CapsNet` does:
# the class capsules, and the intermediates, what each layer gave.


# %%
class Classifier(nnx.Module):
    """A small `CapsNet`, which gives the activations of the classes, `[B, classes]`."""

    def __init__(self, rngs):
        network = CapsNet(len(CLASSES), 8, 4, (6,), RoutingOptions(num_iterations=1))
        image = jnp.zeros((1, SIDE, SIDE, 1))
        self.network = nnx.bridge.ToNNX(network, rngs=rngs).lazy_init(image)

    def __call__(self, images):
        capsules, _ = self.network(images)
        return capsules.activations


# %% [markdown]
# ## Training
#
# `nnx.value_and_grad` differentiates by the module's parameters, and the optimizer, made of one of
# Optax, changes them. The routing needs nothing of its own.


# %%
def loss_of(model, images, labels):
    """The mean spread loss, and the accuracy."""
    activations = model(images)
    accuracy = (activations.argmax(-1) == labels).mean()
    return spread_loss(activations, labels, 0.5).mean(), accuracy


@nnx.jit
def step(model, optimizer, key):
    """One step on 32 new images: the loss and the accuracy before it."""
    found, gradient = nnx.value_and_grad(loss_of, has_aux=True)(model, *batch(key, 32))
    optimizer.update(model, gradient)
    return found


model = Classifier(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
losses, accuracies = [], []
for number in range(80):
    loss, accuracy = step(model, optimizer, jax.random.fold_in(jax.random.key(1), number))
    losses.append(float(loss))
    accuracies.append(float(accuracy))
    if (number + 1) % 20 == 0:
        recent = slice(number - 19, number + 1)
        means = sum(losses[recent]) / 20, sum(accuracies[recent]) / 20
        print(f"steps up to {number + 1}: loss {means[0]:.3f}, accuracy {means[1]:.1%}")
