# %% [markdown]
# # Training on several devices
#
# First devices share a batch, by `jax.jit` alone and by `jax.shard_map`, then also the parent types
# of the convolutional capsules, and each time the result is that of one device. All devices that
# there are take part; a CPU shows itself as four, since it is told to before JAX uses it.
#
# `python -m experiments.train` does all this by itself (`experiments/devices/parallel.py`); this is
# for steps of your own.

# %% [markdown]
# ## One device
#
# A small network, a batch, and a step. Devices share the batch evenly, so that its size is a
# multiple of their number.

# %%
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from emcaps import CapsNet, RoutingOptions, partition_specs, spread_loss

jax.config.update("jax_num_cpu_devices", 4)
devices = jax.devices()
iterations = 2, 1  # of the layer whose types will be divided, and of the class capsules
routing = tuple(RoutingOptions(num_iterations=number) for number in iterations)
model = CapsNet(
    num_classes=4, conv_channels=8, primary_capsules=2, conv_capsules=(4,), routing=routing
)
rng = np.random.default_rng(0)
images = rng.uniform(size=(4 * len(devices), 17, 17, 1)).astype(np.float32)
labels = np.arange(len(images)) % 4
optimizer = optax.adam(3e-3)
STEPS = 10


def loss_of(model):
    """The mean loss of a model on images, as a function of its parameters."""

    def loss(params, images, labels):
        (_, activations), _ = model.apply({"params": params}, images)
        return spread_loss(activations, labels, 0.5).mean()

    return loss


def make_step(gradient_of):
    """A step of training, given a function from (params, images, labels) to the mean loss and its
    gradient.
    """

    def step(params, state, images, labels):
        loss, gradient = gradient_of(params, images, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    return step


def train(step, params, state, images, labels):
    """The parameters after some steps, and the loss of each."""
    losses = []
    for _ in range(STEPS):
        params, state, loss = step(params, state, images, labels)
        losses.append(float(loss))
    return params, losses


params = jax.jit(model.init)(jax.random.key(1), images[:1])["params"]
start = params, optimizer.init(params)
alone, losses = train(
    jax.jit(make_step(jax.value_and_grad(loss_of(model)))), *start, images, labels
)
print("one device:", " ".join(f"{loss:.5f}" for loss in losses))

# %% [markdown]
# ## A batch that is shared
#
# A mesh gives the devices places and names its axes. A `NamedSharding` says which axis of an array
# lies along which axis of the mesh: the examples along `data`, and nothing of the parameters, which
# all devices have.
#
# That is all. The step of one device is compiled for arrays that are so divided; each device routes
# its own examples, and the devices tell each other the sum of their gradients, once in a step.


# %%
def place(tree, mesh, specs):
    """A tree of arrays on the devices; `specs` is one for all, or a tree."""
    specs = jax.tree.broadcast(specs, tree)
    return jax.tree.map(
        lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec)), tree, specs
    )


def largest_difference(ours, theirs):
    """Between two trees of arrays, wherever they are."""
    differences = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), ours, theirs
    )
    return float(max(jax.tree.leaves(differences)))


ALL, SHARED = PartitionSpec(), PartitionSpec("data")
mesh = jax.make_mesh((len(devices),), ("data",))
data_step = jax.jit(make_step(jax.value_and_grad(loss_of(model))))
by_data, data_losses = train(
    data_step, *place(start, mesh, ALL), *place((images, labels), mesh, SHARED)
)
data_difference = largest_difference(by_data, alone)
print(f"{len(devices)} devices sharing the batch:", " ".join(f"{loss:.5f}" for loss in data_losses))
print(f"  parameters differ by at most {data_difference:.1e} after {STEPS} steps")

# %% [markdown]
# ## What each device does
#
# `jax.shard_map` says it outright: a device sees its own examples, and the loss is the mean
# (`pmean`) of what the devices find. JAX tracks what is the same on all devices, and so the
# gradient of the parameters is already that of the mean.


# %%
def loss_over(model, axis):
    """The mean of the devices' losses, as a function of the parameters, and of the examples of each
    device.
    """
    loss = loss_of(model)
    return lambda params, images, labels: jax.lax.pmean(loss(params, images, labels), axis)


mapped_gradient = jax.shard_map(
    jax.value_and_grad(loss_over(model, "data")),
    mesh=mesh,
    in_specs=(ALL, SHARED, SHARED),
    out_specs=(ALL, ALL),
)
mapped_step = jax.jit(make_step(mapped_gradient))
by_shares, share_losses = train(
    mapped_step, *place(start, mesh, ALL), *place((images, labels), mesh, SHARED)
)
share_difference = largest_difference(by_shares, alone)
print(f"{len(devices)} devices, by shard_map:", " ".join(f"{loss:.5f}" for loss in share_losses))
print(f"  parameters differ by at most {share_difference:.1e}")

# %% [markdown]
# ## Parent types that are shared
#
# A layer that is too big for one device is divided along its parent types. The mesh gets a second
# axis, here of two devices if their number is even. `parent_axis` tells the model its name: each
# device then has the parameters of its own types, and routes to them, and the devices add up what
# competition needs to know. `partition_specs` says which parameters these are, for the parameters
# themselves and for any tree with branches like them, such as the optimizer's state.

# %%
model_axis = 2 if len(devices) % 2 == 0 else 1
mesh = jax.make_mesh((len(devices) // model_axis, model_axis), ("data", "model"))
divided_model = model.clone(parent_axis="model")
params_specs, state_specs = (partition_specs(tree, "model") for tree in start)
print(
    "divided over the axis 'model':",
    {name: str(spec) for name, spec in params_specs["conv_caps_1"].items()},
)

# %% [markdown]
# The loss is the same on all devices of the axis `model`, since what a divided layer gives is
# gathered on all of them. A device gets the gradient of its own share of the divided parameters,
# and of all the others.

# %%
divided_gradient = jax.shard_map(
    jax.value_and_grad(loss_over(divided_model, "data")),
    mesh=mesh,
    in_specs=(params_specs, SHARED, SHARED),
    out_specs=(ALL, params_specs),
)
divided_start = tuple(
    place(tree, mesh, specs) for tree, specs in zip(start, (params_specs, state_specs), strict=True)
)
divided_step = jax.jit(make_step(divided_gradient))
by_types, type_losses = train(divided_step, *divided_start, *place((images, labels), mesh, SHARED))

transforms = by_types["conv_caps_1"]["transforms"]
share = transforms.addressable_shards[0].data.shape
type_difference = largest_difference(by_types, alone)
print(
    f"{mesh.shape['data']} x {mesh.shape['model']} devices:",
    " ".join(f"{loss:.5f}" for loss in type_losses),
)
print(
    f"  parameters differ by at most {type_difference:.1e}; of transforms {transforms.shape} a "
    f"device has {share}"
)
