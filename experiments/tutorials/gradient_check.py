# %% [markdown]
# # A routing step of your own, and its gradient checked
#
# Procedure 1 is a page of `jax.numpy`. This tutorial writes it once more, the plain way, finds the
# values and gradients of `em_routing`, changes the E-step, and checks the gradient of what comes
# out against finite differences. A gradient written by hand, which is wrong, is found out. At the
# end two implementations check each other.
#
# It needs the extra `test`, for chex, and runs as a script too:
#
#     python -m experiments.tutorials.gradient_check

# %% [markdown]
# ## Precision first
#
# A finite difference `(f(x + e) - f(x - e)) / 2e` loses digits. In float32 at most four are left,
# and a slightly wrong gradient looks right. So everything below is in float64, which JAX has to be
# asked for. `jax.enable_x64` asks for a block only, and a program that is compiled in it is another
# one than outside.

# %%
import chex
import jax
import jax.numpy as jnp
import numpy as np

from emcaps import conv_em_routing, em_routing, inverse_temperature_schedule

MIN_VARIANCE, EPSILON = 0.1, 1e-7


def example(seed=0, batch=2, children=6, parents=3):
    """Arguments of `em_routing`, float64."""
    rng = np.random.default_rng(seed)
    votes = rng.normal(size=(parents, 16)) + 0.5 * rng.normal(size=(batch, children, parents, 16))
    activations = rng.uniform(0.2, 0.9, (batch, children))
    return votes, activations, 0.1 * rng.normal(size=parents), 0.1 * rng.normal(size=parents)


# %% [markdown]
# ## Procedure 1, the plain way
#
# An M-step fits a Gaussian to each parent's votes, an E-step divides each child among the parents.
# What an E-step needs of a vote is its log density; it is an argument here, because it is what we
# shall change.


# %%
def gaussian(votes, means, variances):
    """Log densities `[..., N, J]` of votes `[..., N, J, 16]`."""
    squares = (votes - means[..., None, :, :]) ** 2 / variances[..., None, :, :]
    return -0.5 * (squares + jnp.log(2 * jnp.pi * variances)[..., None, :, :]).sum(-1)


def softmax(scores):
    """Over the parents."""
    return jax.nn.softmax(scores, axis=-1)


def plain_routing(
    votes, activations, beta_u, beta_a, num_iterations=3, log_density=gaussian, divide=softmax
):
    """Poses `[..., J, 16]` and activations `[..., J]` of the parents."""
    temperatures = inverse_temperature_schedule(num_iterations, final=1.0)
    scores = jnp.zeros(votes.shape[:-1])  # at first each child divides itself evenly
    poses = logits = jnp.zeros(())
    for temperature in temperatures:
        data = (divide(scores) * activations[..., None])[..., None]  # [..., N, J, 1]
        mass = data.sum(-3)
        poses = (data * votes).sum(-3) / (mass + EPSILON)
        variances = (data * (votes - poses[..., None, :, :]) ** 2).sum(-3) / (
            mass + EPSILON
        ) + MIN_VARIANCE
        costs = ((beta_u[:, None] + 0.5 * jnp.log(variances)) * mass).sum(-1)
        logits = temperature * (beta_a - costs)
        # The last has no use.
        scores = jax.nn.log_sigmoid(logits)[..., None, :] + log_density(votes, poses, variances)
    return poses, jax.nn.sigmoid(logits)


def library_routing(votes, activations, beta_u, beta_a, num_iterations=3):
    """The same, as the library has it."""
    result = em_routing(
        votes,
        activations,
        beta_u,
        beta_a,
        num_iterations=num_iterations,
        inverse_temperature=jnp.asarray(inverse_temperature_schedule(num_iterations, final=1.0)),
        min_variance=MIN_VARIANCE,
        mass_epsilon=EPSILON,
    )
    return result.poses, result.activations


# %% [markdown]
# Both have the same values and the same gradients. To compare gradients a number is needed:
# `total` weighs all that comes out, so that no mistake cancels. (`poses.sum()` would be a bad
# choice: much of a wrong gradient can sum to nothing.)


# %%
def total(routing, **keywords):
    """A number that depends on all results of a routing, as a function of its arguments."""

    @jax.jit
    def of(*arguments):
        poses, activations = routing(*arguments, **keywords)
        return (poses**2).sum() + jnp.sin(3 * activations).sum()

    return of


with jax.enable_x64(True):
    places = (0, 1, 2, 3)
    plain, library = (
        jax.jit(jax.value_and_grad(total(routing), places))(*example())
        for routing in (plain_routing, library_routing)
    )
    chex.assert_trees_all_close(plain, library, rtol=1e-9)
    gap = max(float(jnp.abs(a - b).max()) for a, b in zip(plain[1], library[1], strict=True))
    print(
        f"plain and library: {plain[0]:.12f} and {library[0]:.12f}; gradients differ by at most "
        f"{gap:.1e}"
    )

# %% [markdown]
# ## Another E-step
#
# A Gaussian says that a vote five standard deviations away is all but impossible, and one outlier
# decides the E-step. Under Cauchy's distribution far votes count for less. Only the density
# changes; the rest of the procedure stays as it is.


# %%
def cauchy(votes, means, variances):
    """Log densities as `gaussian`, with heavy tails."""
    squares = (votes - means[..., None, :, :]) ** 2 / variances[..., None, :, :]
    return -(jnp.log1p(squares) + jnp.log(jnp.pi * jnp.sqrt(variances))[..., None, :, :]).sum(-1)


# %% [markdown]
# Its gradient is JAX's own, and can still be wrong: where a derivative is infinite, where
# `where` hides a NaN, where a `stop_gradient` was forgotten. `chex.assert_numerical_grads` compares
# it with finite differences, with respect to all arguments. Three things to know:
#
# - `eps` is the step of the difference; 1e-6 suits float64.
# - It multiplies `atol` by the size of the first argument. `rtol` it leaves alone.
# - While it checks, `jax.lax.stop_gradient` gives ones. Whatever stops gradients in order to change
#   them fails here, and should.

# %%
CHECK = dict(order=1, modes=["rev"], eps=1e-6, atol=1e-8, rtol=1e-6)

with jax.enable_x64(True):
    robust = total(plain_routing, log_density=cauchy)
    chex.assert_numerical_grads(robust, example(), **CHECK)
    print(f"with another density: {robust(*example()):.6f}, gradient as finite differences have it")

# %% [markdown]
# ## A gradient by hand
#
# The gradient of a softmax r is `r * (g - sum(r * g))`. Here it is written by hand, as
# `streamed_gradient.py` does for a whole routing, once rightly and once without the sum: as if
# parents did not compete.


# %%
def divide_by_hand(competes):
    """The softmax over the parents with a gradient of our own."""

    @jax.custom_vjp
    def divide(scores):
        return softmax(scores)

    def forward(scores):
        assignments = softmax(scores)
        return assignments, assignments

    def backward(assignments, gradient):
        weighted = assignments * gradient
        return (weighted - assignments * weighted.sum(-1, keepdims=True) if competes else weighted,)

    divide.defvjp(forward, backward)
    return divide


# %% [markdown]
# The values are the same, so that no test of values can tell them apart. The gradient check can.

# %%
with jax.enable_x64(True):
    right, wrong = (
        total(plain_routing, divide=divide_by_hand(competes)) for competes in (True, False)
    )
    assert right(*example()) == wrong(*example())
    chex.assert_numerical_grads(right, example(), **CHECK)
    print("gradient by hand: as finite differences have it")
    try:
        chex.assert_numerical_grads(wrong, example(), **CHECK)
        caught = False
    except AssertionError:
        caught = True
    print("gradient without the competition:", "refused" if caught else "not noticed")

    expected, found = (
        jax.jit(jax.grad(function, places))(*example()) for function in (right, wrong)
    )
    errors = [
        float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(expected, found, strict=True)
    ]
    for name, error in zip(("votes", "activations", "beta_u", "beta_a"), errors, strict=True):
        print(f"  gradient of {name}: wrong by {error:.1%} of its largest entry")

# %% [markdown]
# ## Two implementations check each other
#
# Finite differences need two evaluations for each direction. Where the same thing is computed in
# two ways, their gradients can be compared entry by entry, to the last digits. `conv_em_routing`
# never stores the votes (`"streamed"`, with a gradient by hand) or does, and leaves the gradient to
# JAX (`"dense"`).


# %%
def convolution(implementation):
    """`conv_em_routing` of a small map."""

    def routing(*arguments):
        result = conv_em_routing(
            *arguments,
            stride=2,
            num_iterations=2,
            min_variance=MIN_VARIANCE,
            implementation=implementation,
        )
        return result.poses, result.activations

    return routing


with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 5, 5, 2, 4, 4)), rng.uniform(0.1, 0.9, (2, 5, 5, 2))
    arguments = (
        *children,
        np.eye(4) + 0.3 * rng.normal(size=(3, 3, 2, 3, 4, 4)),
        0.1 * rng.normal(size=3),
        0.1 * rng.normal(size=3),
    )
    streamed, dense = (
        jax.jit(jax.grad(total(convolution(name)), range(5)))(*arguments)
        for name in ("streamed", "dense")
    )
    chex.assert_trees_all_close(streamed, dense, rtol=1e-9, atol=1e-12)
    gap = max(float(jnp.abs(a - b).max()) for a, b in zip(streamed, dense, strict=True))
    print(f"streamed and dense: gradients differ by at most {gap:.1e}")
