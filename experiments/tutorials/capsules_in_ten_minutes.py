# %% [markdown]
# # Capsules in ten minutes
#
# A *capsule* is a small group of numbers that stands for one thing in an image. Its *activation*,
# between 0 and 1, says how sure it is that the thing is there. Its *pose*, a 4x4 matrix, says how
# it is there: where, how large, turned in what way. Layers of capsules find larger things from
# smaller ones, and a larger thing is there if the smaller ones agree on its pose.
#
# This is a walk from one image to its class, through a trained network that comes with the package:
# the one of [Matrix capsules with EM routing](https://openreview.net/forum?id=HJWLfGWRb) (Hinton,
# Sabour, Frosst 2018). After it come three experiments on what is often said of capsules: that a
# pose follows the object, that a face with its parts in the wrong places is no face, and that each
# entry of a pose means something.
#
# It needs the extra `experiments` (`pip install -e '.[experiments]'`), and Jupyter, started in the
# folder of this notebook. Nothing is downloaded. On two cores all of it takes two minutes, most of
# them to train the networks of the last two sections.

# %%
# %matplotlib inline
import sys

sys.path.append("../..")  # a notebook starts in its folder, `experiments` is above

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from emcaps import CapsNet, em_routing, spread_loss
from emcaps.diagnostics import diagnose, results_by_iteration
from emcaps.dynamic import Decoder, reconstruction_loss
from emcaps.pretrained import load_classifier
from experiments.analysis import convergence
from experiments.data.line_drawings import OBJECTS, draw
from experiments.plots import walkthrough
from experiments.plots.capsules import reconstructions

matplotlib.rcParams["figure.dpi"] = 120

# %% [markdown]
# ## The network
#
# `load_classifier("toynorb")` knows five kinds of toys from pairs of small gray images.
# (`load_classifier("mnist")` is the same for digits.) An ordinary convolution finds features.
# `primary` makes the first capsules of them, eight types at each of 14x14 places. Two layers of
# convolutional capsules follow, in which a capsule sees the 3x3 places below it. The five class
# capsules see all places. The picture is drawn from the model itself.

# %%
classifier = load_classifier("toynorb")
names = ("animal", "human", "airplane", "truck", "car")
HUMAN = names.index("human")
image = classifier.examples.images[HUMAN]  # uint8 [48, 48, 2]
seen = classifier.view(image[None])  # what the network sees of it, float32 [1, 32, 32, 2]

walkthrough.architecture(classifier.model, seen.shape[1:])

# %% [markdown]
# ## From an image to poses
#
# The network is applied to one toy, a human figure. Besides the class capsules it returns what each
# layer gave. Below are the primary capsules. Where a type's map is bright, it has found what it
# looks for. The matrices are the poses of the eight capsules in the red square: red entries are
# positive, blue ones negative. Nobody has told the network what an entry should mean.

# %%
variables = {"params": classifier.params}
classes, layers = jax.jit(classifier.model.apply)(variables, seen)

size = seen.shape[1]
start = (image.shape[0] - size) // 2
cropped = image[start : start + size, start : start + size]
walkthrough.primary_capsules(cropped, layers["primary"], place=(6, 7))

# %% [markdown]
# ## Votes
#
# A capsule i votes for the pose of each capsule j above it: its own pose times a matrix that was
# learned for this pair of types,
#
#     vote_ij = pose_i @ transform_ij
#
# If i is a head, and j a person, then the transform is where a person is, seen from the head.
# Votes of a head and of an arm that belong to the same person are alike.

# %%
# What the layer before gives to the class capsules, and the coordinates of its places.
below, coordinates = convergence.class_layer_input(classifier.model, variables, seen)
parameters = classifier.params["class_caps"]
transforms = parameters["transforms"]  # [types, classes, 4, 4], the same at all places

row, column, kind = 1, 1, int(below.activations[0, 1, 1].argmax())
pose, transform = below.poses[0, row, column, kind], transforms[kind, HUMAN]
vote = pose @ transform

walkthrough.product({"pose": pose, "transform": transform, "vote": vote})

# %% [markdown]
# The votes for the class capsules are told, in addition, where they come from: the row and the
# column of the place, from 0 to 1, are added to two of their entries, the first and the second in
# the last column.
#
# Is this all that the network computes? `class_votes` makes all votes this way, 5 of each of the
# 4 x 4 x 16 capsules. Given to the function `em_routing`, they lead to the same activations as the
# network's.

# %%
votes = convergence.class_votes(below.poses, transforms, coordinates)  # [1, 256, 5, 16]

place = jnp.zeros((4, 4)).at[:2, 3].set(coordinates[row, column])
number = (row * below.poses.shape[2] + column) * below.poses.shape[3] + kind
vote_difference = float(jnp.abs(votes[0, number, HUMAN] - (vote + place).ravel()).max())

options = classifier.model.layer_routing()[-1].learned(parameters)
betas = parameters["beta_u"], parameters["beta_a"]
routed = em_routing(votes, below.activations.reshape(1, -1), *betas, options=options)
routing_difference = float(jnp.abs(routed.activations - classes.activations).max())

print(f"votes by hand and of `class_votes` differ by {vote_difference:.0e},")
print(f"activations of `em_routing` and of the network by {routing_difference:.0e}")
for name, activation in zip(names, classes.activations[0], strict=True):
    print(f"  {name}: {activation:.2f}")

# %% [markdown]
# ## Routing by agreement
#
# To which class does a capsule belong? Procedure 1 of the paper lets votes decide. `share_ij` is
# how much of capsule i goes to class j; the shares of a capsule sum to 1, and at first they are all
# equal. Two steps alternate:
#
#     M-step, for each class: a Gaussian around its votes, each counted by its share
#         weight_ij = share_ij * activation_i
#         mean_j = sum_i weight_ij * vote_ij / sum_i weight_ij
#         variance_j = sum_i weight_ij * (vote_ij - mean_j)**2 / sum_i weight_ij
#         cost_j = sum over the 16 entries (beta_u + log(variance_j) / 2) * sum_i weight_ij
#         activation_j = sigmoid(lambda * (beta_a - cost_j))
#
#     E-step, for each capsule: where its votes are likely, there it goes
#         p_ij = density of the Gaussian of j at vote_ij
#         share_ij = activation_j * p_ij / sum_k activation_k * p_ik
#
# The mean is the pose of the class. Votes that agree have a small variance, and that makes the
# class active. So this is one round of finding clusters, in which clusters compete for the points.
# (The recipe that trains, `emcaps.TRAINABLE`, compares the costs of the classes in units of their
# standard deviation, and learns how sharp the E-step is; [how it
# works](../documentation/how_it_works.md) says why.)
#
# Below is each of the 256 capsules a column, black where its share is 1. After the first M-step
# shares are even. Then they are sharp: nearly every capsule belongs to one class. The entropy, in
# nats, falls from log 5 = 1.61 to nearly 0.

# %%
results = results_by_iteration(classifier.model, variables, seen, "class_caps")
entropies = [float(diagnose(result).assignment_entropy) for result in results]
measured = convergence.measure_convergence(classifier.model, variables, seen)

walkthrough.assignments(measured.assignments[:, 0], entropies, names, HUMAN)

# %% [markdown]
# ## Votes gather
#
# What have the classes gained? Here are the distances of the votes to the mean of each class, after
# the first iteration and after the second, as in the paper's figure 2. The outline counts each vote
# once; what is filled counts it by its share, in units of an even one. The number is the activation
# of the class. In the end the human figure (green) has most of the votes that are near its mean;
# the others are left with few.

# %%
walkthrough.gathered_votes(measured, cropped, HUMAN, names)

# %% [markdown]
# ## Poses follow the object
#
# The pose should change when the object moves, and its activation should not. We move the toy,
# pixel by pixel, and look at both. (The last section goes the other way: it moves the pose and
# draws the object.)

# %%
shifts = np.arange(-4, 5)
shifted = np.stack([np.roll(image, shift, axis=0) for shift in shifts])
found = classifier.predict(shifted)
poses = np.asarray(found.poses[:, HUMAN])

walkthrough.pose_of_the_moved(
    shifted[:, start : start + size, start : start + size],
    shifts,
    np.asarray(found.activations),
    poses,
    "pixels downwards",
    HUMAN,
    marked={(0, 3): "row 1, column 4", (1, 3): "row 2, column 4"},
)

# %% [markdown]
# The activation stays, and the pose moves. But the entries in color, to which row and column are
# added, do not simply say where the toy is: the second moves though the toy goes straight down, and
# so do most others. What the pose knows is spread over its entries, and each class spreads it in
# its own way. `python -m experiments.equivariance` measures how much of it a linear map can read.

# %% [markdown]
# ## A face with its parts moved
#
# Two eyes, a nose and a mouth make a face only in their places. A network that merely counts parts
# would not notice if they were elsewhere. Capsules, whose votes depend on poses, are said to. We
# can ask.
#
# `draw` makes line drawings: faces, houses, cars, clocks and fish, each of four parts in an
# outline. A small network learns them, whole objects only, and new ones in each step.

# %%
BATCH, STEPS = 32, 200
drawing_names = tuple(OBJECTS)
FACE = drawing_names.index("face")
model = CapsNet(len(drawing_names), conv_channels=32, conv_capsules=(8, 8))
optimizer = optax.adam(3e-3)


def drawings(key, number, moved=0.0):
    """Images in [0, 1], `[number, 28, 28, 1]`, and their labels."""
    images, labels = draw(key, number, moved)
    return images.astype(jnp.float32) / 255, labels


def loss_of(params, images, labels):
    """The mean spread loss, and the accuracy."""
    activations = model.apply({"params": params}, images)[0].activations
    accuracy = (activations.argmax(-1) == labels).mean()
    return spread_loss(activations, labels, 0.9).mean(), accuracy


@jax.jit
def step(params, state, key):
    """One step on new drawings."""
    objective = jax.value_and_grad(loss_of, has_aux=True)
    (loss, accuracy), gradient = objective(params, *drawings(key, BATCH))
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss, accuracy


params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
state = optimizer.init(params)
for index in range(STEPS):
    key = jax.random.fold_in(jax.random.key(1), index)
    params, state, loss, accuracy = step(params, state, key)
    if (index + 1) % 50 == 0:
        print(f"step {index + 1}: loss {loss:.2f}, accuracy {accuracy:.0%}")

# %% [markdown]
# Now the parts of new faces move: at 1 each is where the next one belongs. Printed are the face's
# activation, a mean of 100 faces, and how many of them are still called a face. Above the curves is
# one of the faces.

# %%
amounts = np.linspace(0, 1, 9)
predict = jax.jit(lambda images: model.apply({"params": params}, images)[0].activations)
one_face, means, still_faces = [], [], []
for amount in amounts:
    images, labels = drawings(jax.random.key(2), 500, amount)
    activations = np.asarray(predict(images))[np.asarray(labels) == FACE]
    one_face.append(np.round(255 * np.asarray(images[FACE])).astype(np.uint8))
    means.append(activations.mean(0))
    still_faces.append(float((activations.argmax(-1) == FACE).mean()))
means = np.stack(means)

for index in range(0, len(amounts), 2):
    activation, share = means[index, FACE], still_faces[index]
    print(f"moved by {amounts[index]:<4g}  activation {activation:.2f}  a face: {share:.0%}")
walkthrough.activations_of_the_moved(
    np.stack(one_face), amounts, means, "how far parts are moved", FACE
)

# %% [markdown]
# So this network mostly still sees a face. Its activation falls while the parts are between places,
# and some of it comes back when each has arrived in the place of another. This is one network and a
# short training. `python -m experiments.jumble` has asked networks of three seeds, trained for
# longer, and CNNs beside them. [What it found](../documentation/claims.md) is the same: all of
# them still see a face, and capsules keep as large a share of their activation (87%) as a CNN
# (82%). That capsules need the parts in their places is a good story, which our measurements do not
# bear out.

# %% [markdown]
# ## What an entry of a pose means
#
# What does the network know of a face besides that it is one? A decoder can tell: a small network
# that is given the pose of one class capsule, nothing else, and learns to draw the image. The
# capsules stay as they are. Drawings of a class change its pose by little, so the decoder is given
# the pose in standard deviations from the mean of its class.

# %%
DECODER_STEPS = 600
decoder = Decoder(image_shape=(28, 28, 1))
decoder_optimizer = optax.adam(1e-3)


def poses_of(images):
    """The poses of all classes, `[number, classes, 4, 4]`."""
    return model.apply({"params": params}, images)[0].poses


images, labels = drawings(jax.random.key(3), 1000)
drawing_poses = jax.jit(poses_of)(images)
of_class = [drawing_poses[labels == label, label] for label in range(len(drawing_names))]
mean = jnp.stack([each.mean(0) for each in of_class])
deviation = jnp.stack([each.std(0) for each in of_class])


def standardized(poses):
    """In standard deviations from the mean of each class."""
    return (poses - mean) / deviation


def decoder_loss(decoder_params, images, labels):
    """The mean squared distance of the drawn images to the images."""
    poses = standardized(poses_of(images))
    drawn = jnp.asarray(decoder.apply({"params": decoder_params}, poses, labels))
    return reconstruction_loss(images, drawn).mean()


@jax.jit
def decoder_step(decoder_params, state, key):
    """One step of the decoder on new drawings."""
    loss, gradient = jax.value_and_grad(decoder_loss)(decoder_params, *drawings(key, 2 * BATCH))
    updates, state = decoder_optimizer.update(gradient, state)
    return optax.apply_updates(decoder_params, updates), state, loss


decoder_params = jax.jit(decoder.init)(jax.random.key(4), drawing_poses, labels)["params"]
state = decoder_optimizer.init(decoder_params)
decoder_losses = []
for index in range(DECODER_STEPS):
    key = jax.random.fold_in(jax.random.key(5), index)
    decoder_params, state, loss = decoder_step(decoder_params, state, key)
    decoder_losses.append(float(loss))
    if (index + 1) % 150 == 0:
        print(f"step {index + 1}: squared distance {np.mean(decoder_losses[-50:]):.0f}")

blurred = jnp.stack([images[labels == label].mean(0) for label in range(len(drawing_names))])
blurred_loss = float(reconstruction_loss(images, blurred[labels]).mean())
print(f"the mean drawing of each class instead: {blurred_loss:.0f}")

# %% [markdown]
# From the pose alone it draws closer to the image than the mean drawing of the class is. So the
# pose holds something of each face. Now one entry after the other moves, in a row each, and the
# decoder draws.

# %%
amounts = np.linspace(-2.5, 2.5, 5)
of_face = standardized(drawing_poses)[FACE]  # of images[FACE], [classes, 4, 4]
entries = jnp.eye(16).reshape(16, 1, 4, 4)
moved = jnp.tile(of_face, (16, len(amounts), 1, 1, 1))
moved = moved.at[:, :, FACE].add(entries * amounts[:, None, None])
moved = moved.reshape(-1, *of_face.shape)
decoded = decoder.apply({"params": decoder_params}, moved, jnp.full(len(moved), FACE))
decoded = np.asarray(decoded).reshape(16, len(amounts), 28, 28, 1)

reconstructions(
    np.asarray(images[FACE]),
    decoded,
    amounts.tolist(),
    [f"row {row}, column {column}" for row in range(1, 5) for column in range(1, 5)],
    unit=" standard deviations",
)

# %% [markdown]
# Entries turn the face, change its size, or turn a square outline into a round one; most do
# several of these at once, as the entries did that followed the toy. Nobody has asked them to be
# told apart. In "Dynamic Routing Between Capsules" capsules and decoder are trained together, on
# digits: `python -m experiments.train --dataset mnist --reconstruction` does that, and [the
# claims](../documentation/claims.md#what-it-looks-like) show what it draws.
#
# ## Where to read on
#
# - [A network of your own](build_a_network.ipynb), from the functions.
# - [The claims](../documentation/claims.md): parameters, viewpoints, attacks, with a CNN beside.
# - `emcaps.diagnostics`: how routing goes in a network of yours.
