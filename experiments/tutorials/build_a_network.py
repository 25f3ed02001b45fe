# %% [markdown]
# # A network of your own, from functions of arrays
#
# `emcaps` has Flax modules, but needs none of them: its routings are functions of arrays, and here
# is a network made of them, of `jit`, `vmap` and `grad`, and of a capsule layer that the library
# does not have. It learns to tell shapes apart that the script draws itself, on one CPU in less
# than a minute:
#
#     python -m experiments.tutorials.build_a_network

# %% [markdown]
# ## Shapes to tell apart
#
# A ring, a square, a triangle and a plus, at random angles, sizes and places, in noise. The
# function draws one of them; `vmap` makes many.

# %%
import jax
import jax.numpy as jnp
import optax

from emcaps import TRAINABLE, conv_em_routing, em_routing, spread_loss
from emcaps.diagnostics import diagnose

SIDE, CLASSES = 20, ("ring", "square", "triangle", "plus")


def draw(key, label):
    """One shape, `[SIDE, SIDE, 1]`."""
    angle_key, size_key, place_key, noise_key = jax.random.split(key, 4)
    angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
    size = jax.random.uniform(size_key, minval=0.45, maxval=0.7)
    axis = jnp.linspace(-1, 1, SIDE)
    place = jnp.stack(jnp.meshgrid(axis, axis), -1) - jax.random.uniform(
        place_key, (2,), minval=-0.25, maxval=0.25
    )
    x, y = jnp.moveaxis(
        place @ jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]),
        -1,
        0,
    )
    ring = jnp.abs(jnp.hypot(x, y) - size) - 0.12
    square = jnp.maximum(jnp.abs(x), jnp.abs(y)) - 0.8 * size
    triangle = jnp.maximum(0.87 * jnp.abs(x) + 0.5 * y, -y) - 0.55 * size
    plus = jnp.maximum(
        jnp.minimum(jnp.abs(x), jnp.abs(y)) - 0.12, jnp.maximum(jnp.abs(x), jnp.abs(y)) - size
    )
    inside = jnp.clip(0.5 - jnp.stack([ring, square, triangle, plus])[label] / 0.1, 0, 1)
    return (inside + 0.1 * jax.random.normal(noise_key, inside.shape))[..., None]


def batch(key, number):
    """Images `[number, SIDE, SIDE, 1]` and their labels."""
    label_key, draw_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (number,), 0, len(CLASSES))
    return jax.vmap(draw)(jax.random.split(draw_key, number), labels), labels


# %% [markdown]
# ## A layer of your own
#
# In the paper child n votes for parent j with its pose times a matrix, `pose_n @ transform_nj`.
# `em_routing` does not ask where votes come from. Here each entry of the child's pose is scaled and
# shifted, which has 32 parameters for each pair where a matrix has 16, and knows nothing of
# rotations.
#
# The function is written for one example. `vmap` over it is the layer; the batch axes that
# `em_routing` takes would do as well.
#
# `TRAINABLE` is the recipe that trains; without `options` the functions are the paper's procedure.


# %%
def scaled_capsules(params, poses, activations):
    """From poses `[N, 4, 4]` and activations `[N]` of one example to a routing result
    of J parents.
    """
    votes = params["scale"] * poses.reshape(-1, 1, 16) + params["shift"]  # [N, J, 16]
    return em_routing(votes, activations, params["beta_u"], params["beta_a"], options=TRAINABLE)


# %% [markdown]
# ## The network
#
# A convolution; primary capsules, which are a linear map of its channels; convolutional capsules;
# and the layer of our own, whose parents are the classes and see all capsules of the layer below.
# (`class_em_routing` is what the paper has there: votes by matrices which all positions share, and
# the place of a child added to its vote.) The parameters are a dictionary.

# %%
CHANNELS, PRIMARY, CONV = 16, 4, 6


def init(key):
    """Parameters: transforms near the identity, so that at first parents agree with
    their children.
    """
    keys = jax.random.split(key, 5)
    pairs = 3 * 3 * CONV, len(CLASSES), 16

    def betas(parents):
        return {"beta_u": jnp.zeros(parents), "beta_a": jnp.zeros(parents)}

    return {
        "kernel": jax.random.normal(keys[0], (5, 5, 1, CHANNELS)) / 5,
        "primary": jax.random.normal(keys[1], (CHANNELS, PRIMARY, 17)) / CHANNELS**0.5,
        "conv": {
            "transforms": jnp.eye(4)
            + 0.1 * jax.random.normal(keys[2], (3, 3, PRIMARY, CONV, 4, 4)),
            **betas(CONV),
        },
        "classes": {
            "scale": 1 + 0.1 * jax.random.normal(keys[3], pairs),
            "shift": 0.1 * jax.random.normal(keys[4], pairs),
            **betas(len(CLASSES)),
        },
    }


def network(params, images):
    """From images `[B, SIDE, SIDE, 1]` to the routing result of each layer."""
    layout = ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "VALID", dimension_numbers=layout
    )
    # [B, 8, 8, PRIMARY, 17].
    primary = jnp.einsum("bhwc,cip->bhwip", jax.nn.relu(features), params["primary"])
    poses, activations = (
        primary[..., :16].reshape(*primary.shape[:-1], 4, 4),
        jax.nn.sigmoid(primary[..., 16]),
    )

    conv = conv_em_routing(poses, activations, **params["conv"], stride=2, options=TRAINABLE)

    seen = conv.poses.reshape(len(images), -1, 4, 4), conv.activations.reshape(len(images), -1)
    return {
        "conv": conv,
        "classes": jax.vmap(scaled_capsules, in_axes=(None, 0, 0))(params["classes"], *seen),
    }


# %% [markdown]
# ## Training
#
# The routing is part of the function that is differentiated: nothing about it is special. Each step
# draws new images, so that its accuracy, measured before it changes the parameters, is that on
# images which were not trained on.


# %%
def loss_of(params, images, labels):
    """The mean spread loss; and besides it the accuracy and, of each layer, how routing goes."""
    results = network(params, images)
    activations = results["classes"].activations
    accuracy = (activations.argmax(-1) == labels).mean()
    return spread_loss(activations, labels, 0.5).mean(), (
        accuracy,
        {name: diagnose(result) for name, result in results.items()},
    )


optimizer = optax.adam(3e-3)


@jax.jit
def step(params, state, key):
    """One step on 64 new images."""
    (loss, (accuracy, found)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        params, *batch(key, 64)
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss, accuracy, found


params = init(jax.random.key(0))
state = optimizer.init(params)
losses, accuracies = [], []
for number in range(120):
    params, state, loss, accuracy, found = step(
        params, state, jax.random.fold_in(jax.random.key(1), number)
    )
    losses.append(float(loss))
    accuracies.append(float(accuracy))
    if (number + 1) % 20 == 0:
        recent = slice(number - 19, number + 1)
        means = sum(losses[recent]) / 20, sum(accuracies[recent]) / 20
        print(
            f"steps up to {number + 1}: loss {means[0]:.3f}, accuracy {means[1]:.1%} (by chance "
            f"{1 / len(CLASSES):.0%})"
        )

# %% [markdown]
# ## How routing goes
#
# `diagnose` takes any routing result, also that of our own layer: how undecided the children are
# (the entropy of their assignments), and which parents are always off (dead) or always on
# (saturated).

# %%
for name, numbers in found.items():
    print(
        f"{name}: entropy {numbers.assignment_entropy:.2f}, dead {numbers.dead:.0%}, saturated "
        f"{numbers.saturated:.0%}"
    )
