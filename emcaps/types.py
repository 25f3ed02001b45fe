"""The records that flow through the library, and the one legend of shapes that every file uses.

| letter  | meaning                          | letter | meaning                                |
|---------|----------------------------------|--------|----------------------------------------|
| `B`     | batch                            | `K`    | kernel size (`KH`, `KW` if not square) |
| `H W`   | height and width of the children | `S`    | parent positions, `OH * OW`            |
| `OH OW` | height and width of the parents  | `N`    | children of a parent, `K * K * I`      |
| `I`     | child capsule types              | `P`    | entries of a pose, 16: 4x4, row major  |
| `J`     | parent capsule types             | `T`    | routing iterations                     |

Public arrays are batch-first. Inside the routing the order is reversed: pose entries lead, then
the parent type, and the columns `M` (parent position x batch, batch fastest) come last, so that
every operation is a long vector operation.
"""

from typing import NamedTuple

import jax

POSE_SIZE = 4
POSE_ENTRIES = POSE_SIZE * POSE_SIZE


class Capsules(NamedTuple):
    """Capsules of one layer: what each one has found (pose) and how sure it is (activation).

    Attributes:
        poses: `[B, H, W, I, 4, 4]`, floating. Class capsules have no positions: `[B, J, 4, 4]`, and
            those of `DynamicCapsNet` are vectors, `[B, J, D]`.
        activations: `[B, H, W, I]` in [0, 1]. Class capsules: `[B, J]`.
    """

    poses: jax.Array
    activations: jax.Array


class RoutingResult(NamedTuple):
    """What EM routing found. Shapes for `em_routing` | for `conv_em_routing`.

    Poses, activations and assignments are in the dtype of the arguments; logits and variances in at
    least float32.

    Attributes:
        poses: the parents' poses, the means of Procedure 1. `[..., J, P]` | `[B, OH, OW, J, 4, 4]`.
        activations: sigmoid of the logits, in [0, 1]. `[..., J]` | `[B, OH, OW, J]`.
        activation_logits: `lambda_t (beta_a - cost)` of the last M-step. `[..., J]` |
            `[B, OH, OW, J]`.
        variances: of the votes around each parent's pose, at least `min_variance`. Like `poses`.
        assignments: those of the last M-step, before they are multiplied by the child's activation.
            Over all parents that compete for a child they sum to 1: by default all that it reaches;
            see `RoutingOptions.competition`, and `initial_assignments` where there is one
            iteration. `[..., N, J]` | `[B, OH, OW, KH, KW, I, J]`.
    """

    poses: jax.Array
    activations: jax.Array
    activation_logits: jax.Array
    variances: jax.Array
    assignments: jax.Array
