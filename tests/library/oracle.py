"""Procedure 1 of "Matrix capsules with EM routing" in plain loops: the oracle of the tests.

Slow and obvious on purpose: NumPy, float64, one loop per index of the paper, variances in two
passes, nothing shared with emcaps. Only the 16 entries of a pose (h in the paper) are vectorized.
(`precision=np.float32` shows what that precision alone costs these same loops; it is never what a
result is compared with.)

The three routing functions differ only in which children a parent position sees, so each writes
that down, one example at a time, as

    votes[s][n]     [J, P]   what the n-th child that position s sees votes, for each type j
    child_of[s][n]  int      which child that is

and hands it to `procedure_1`, the page to hold next to the paper. A parent is a pair (s, j) of a
position and a type.
"""

import functools
from collections import namedtuple
from itertools import product

import numpy as np

RoutingResult = namedtuple(
    "RoutingResult", "poses activations activation_logits variances assignments"
)


def procedure_1(
    votes,
    child_of,
    child_activations,
    beta_u,
    beta_a,
    *,
    num_iterations,
    inverse_temperature=None,
    min_variance,
    mass_epsilon,
    mass_scale=1.0,
    assignment_temperature=1.0,
    normalize_costs=False,
    competition="all",
    initial_assignments="reachable",
    damping=0.0,
):
    """Route one example: poses and variances [S,J,P], activations [S,J], assignments [S,N,J]."""
    S, N, J, P = votes.shape
    zeros = functools.partial(np.zeros, dtype=votes.dtype)
    if inverse_temperature is None:
        inverse_temperature = [0.01 * (1 - 0.95 ** (t + 1)) for t in range(num_iterations)]

    # Every child spreads one unit evenly over all the parents that it reaches (positions x types).
    parents_of = {i: [] for i in range(len(child_activations))}
    for s, n, j in product(range(S), range(N), range(J)):
        parents_of[child_of[s][n]].append((s, n, j))
    R = zeros((S, N, J))
    for parents in parents_of.values():
        for s, n, j in parents:
            R[s, n, j] = 1 / (J if initial_assignments == "types" else len(parents))

    # The parents that compete for a child. In the paper: all that it reaches.
    rivals = {}
    for i, parents in parents_of.items():
        for s, n, j in parents:
            group = {"all": i, "types": (s, n), "positions": (i, j)}[competition]
            rivals.setdefault(group, []).append((s, n, j))

    old_mu = zeros((S, J, P))
    for t in range(num_iterations):
        # M-step: to every parent a Gaussian, fitted to the votes it is given, and what that costs.
        mu, var = zeros((S, J, P)), zeros((S, J, P))
        cost, logit, log_a = zeros((S, J)), zeros((S, J)), zeros((S, J))
        for s, j in product(range(S), range(J)):
            data = [R[s, n, j] * child_activations[child_of[s][n]] for n in range(N)]
            mass = sum(data)
            for n in range(N):
                mu[s, j] += data[n] * votes[s, n, j] / (mass + mass_epsilon)
            mu[s, j] = (1 - damping) * mu[s, j] + damping * old_mu[s, j]  # in the paper: no damping
            for n in range(N):
                var[s, j] += data[n] * (votes[s, n, j] - mu[s, j]) ** 2 / (mass + mass_epsilon)
            var[s, j] += min_variance
            cost[s, j] = sum((beta_u[j] + 0.5 * np.log(var[s, j])) * mass * mass_scale)
        for s in range(S):
            if normalize_costs:  # not in the paper: standardized over the types at one position
                deviation = np.sqrt(sum((cost[s] - sum(cost[s]) / J) ** 2) / J)
                cost[s] = (cost[s] - sum(cost[s]) / J) / (deviation + 1)
            for j in range(J):
                logit[s, j] = inverse_temperature[t] * (beta_a[j] - cost[s, j])
                log_a[s, j] = -np.logaddexp(0, -logit[s, j])

        if t == num_iterations - 1:
            return RoutingResult(mu, np.exp(log_a), logit, var, R)

        # E-step: every child divides itself anew among the parents that compete for it.
        old_mu, R = mu, zeros((S, N, J))
        for parents in rivals.values():
            log_p = []
            for s, n, j in parents:
                square = (votes[s, n, j] - mu[s, j]) ** 2 / (2 * var[s, j])
                log_p.append(log_a[s, j] - sum(square + 0.5 * np.log(2 * np.pi * var[s, j])))
            scores = [x / assignment_temperature for x in log_p]  # in the paper: 1
            for (s, n, j), score in zip(parents, scores, strict=True):
                R[s, n, j] = np.exp(score - log_sum_exp(scores))


def log_sum_exp(xs):
    return max(xs) + np.log(sum(np.exp(x - max(xs)) for x in xs))


def em_routing(votes, activations, beta_u, beta_a, *, precision=np.float64, **keywords):
    """Every parent sees every child: votes [...,N,J,P], activations [...,N]."""
    votes, activations, beta_u, beta_a = (
        np.asarray(x, precision) for x in (votes, activations, beta_u, beta_a)
    )
    batch, (N, J, P) = votes.shape[:-3], votes.shape[-3:]
    results = []
    for b in np.ndindex(*batch):
        child_of = [list(range(N))]  # one position, which sees all the children
        result = procedure_1(votes[b][None], child_of, activations[b], beta_u, beta_a, **keywords)
        results.append(RoutingResult(*(field[0] for field in result)))
    return stack(
        results,
        poses=(*batch, J, P),
        activations=(*batch, J),
        activation_logits=(*batch, J),
        variances=(*batch, J, P),
        assignments=(*batch, N, J),
    )


def conv_em_routing(
    poses, activations, transforms, beta_u, beta_a, *, stride=1, precision=np.float64, **keywords
):
    """A parent sees a window.

    poses [B,H,W,I,4,4], activations [B,H,W,I], transforms [KH,KW,I,J,4,4].
    """
    poses, activations, transforms, beta_u, beta_a = (
        np.asarray(x, precision) for x in (poses, activations, transforms, beta_u, beta_a)
    )
    B, H, W, child_types = activations.shape
    KH, KW, _, J = transforms.shape[:4]
    OH, OW = (H - KH) // stride + 1, (W - KW) // stride + 1
    child_number = np.arange(H * W * child_types).reshape(H, W, child_types)
    results = []
    for b in range(B):
        votes, child_of = [], []
        for oh, ow in product(range(OH), range(OW)):  # a parent position
            votes_here, children_here = [], []
            for kh, kw, i in product(range(KH), range(KW), range(child_types)):  # a child it sees
                h, w = oh * stride + kh, ow * stride + kw
                vote = [(poses[b, h, w, i] @ transforms[kh, kw, i, j]).ravel() for j in range(J)]
                votes_here.append(vote)
                children_here.append(child_number[h, w, i])
            votes.append(votes_here)
            child_of.append(children_here)
        votes, child_activations = np.array(votes), activations[b].ravel()
        results.append(procedure_1(votes, child_of, child_activations, beta_u, beta_a, **keywords))
    return stack(
        results,
        poses=(B, OH, OW, J, 4, 4),
        activations=(B, OH, OW, J),
        activation_logits=(B, OH, OW, J),
        variances=(B, OH, OW, J, 4, 4),
        assignments=(B, OH, OW, KH, KW, child_types, J),
    )


def class_em_routing(
    poses,
    activations,
    transforms,
    beta_u,
    beta_a,
    *,
    coordinates=None,
    precision=np.float64,
    **keywords,
):
    """Every class sees the whole map.

    poses and activations as above, transforms [I,J,4,4], the same at all positions, and
    coordinates [H,W,2], the (row, column) of each position.
    """
    poses, activations, transforms, beta_u, beta_a = (
        np.asarray(x, precision) for x in (poses, activations, transforms, beta_u, beta_a)
    )
    B, H, W, child_types = activations.shape
    J = transforms.shape[1]
    results = []
    for b in range(B):
        votes = []
        for h, w, i in product(range(H), range(W), range(child_types)):
            vote = [poses[b, h, w, i] @ transforms[i, j] for j in range(J)]
            if coordinates is not None:  # coordinate addition: where the child is
                for j in range(J):
                    vote[j][0, 3] += coordinates[h][w][0]
                    vote[j][1, 3] += coordinates[h][w][1]
            votes.append([vote[j].ravel() for j in range(J)])
        child_of = [list(range(H * W * child_types))]  # one position, which sees all the children
        child_activations, votes = activations[b].ravel(), np.array([votes])
        results.append(procedure_1(votes, child_of, child_activations, beta_u, beta_a, **keywords))
    return stack(
        results,
        poses=(B, 1, 1, J, 4, 4),
        activations=(B, 1, 1, J),
        activation_logits=(B, 1, 1, J),
        variances=(B, 1, 1, J, 4, 4),
        assignments=(B, 1, 1, H, W, child_types, J),
    )


def spread_loss(activations, labels, margin):
    """Per example: the sum over the wrong classes i of max(0, margin - (a_target - a_i))^2."""
    losses = []
    for a, target in zip(np.asarray(activations, np.float64), labels, strict=True):
        wrong = [i for i in range(len(a)) if i != target]
        losses.append(sum(max(0.0, margin - (a[target] - a[i])) ** 2 for i in wrong))
    return np.array(losses)


def stack(results, **shapes):
    """The examples' results as arrays of the given shapes."""
    return RoutingResult(
        **{
            name: np.array([getattr(result, name) for result in results]).reshape(shape)
            for name, shape in shapes.items()
        }
    )
