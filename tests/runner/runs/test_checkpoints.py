"""Checkpoints: what is kept, and that it comes back as it was."""

import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.devices.parallel import REPLICATED, device_mesh
from experiments.runs.checkpoints import Checkpoints, UnlikeCheckpoint


class State(NamedTuple):
    step: jax.Array
    weights: dict[str, jax.Array]


def state(step):
    return State(
        jnp.int32(step), {"w": jnp.arange(4.0) / (step + 1), "b": jnp.ones((), jnp.bfloat16)}
    )


def replicated(num_devices):
    return jax.NamedSharding(device_mesh(jax.devices()[:num_devices]), REPLICATED)


def test_a_state_comes_back_on_other_devices(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.device_put(state(3), replicated(2)), accuracy=0.5)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(3, jax.eval_shape(lambda: state(0)), replicated(1))
    assert isinstance(restored, State)
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert leaf.dtype == expected.dtype and leaf.sharding == replicated(1)
        np.testing.assert_array_equal(leaf, expected)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), accuracy=0.5)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(3, jax.eval_shape(lambda: state(0)), replicated(1))
    np.testing.assert_array_equal(restored.weights["w"], state(3).weights["w"])


def test_the_newest_two_and_the_best_are_kept(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.4, 0.3]):
            checkpoints.save(step, state(step), accuracy=accuracy)
        assert checkpoints.steps() == [1, 3, 4]
        checkpoints.save(5, state(5))  # not evaluated
        assert checkpoints.steps() == [1, 4, 5]
    assert not caplog.records


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(1, state(2))
        restored = checkpoints.restore(1, state(0), replicated(1))
    np.testing.assert_array_equal(restored.weights["w"], state(1).weights["w"])


def test_what_an_interrupted_save_leaves_is_not_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert half.exists()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3))
        assert checkpoints.steps() == [1, 3]
    assert not half.exists()


def test_a_checkpoint_written_with_64_bit_numbers_is_not_called_damaged(tmp_path):
    narrow = {"step": jnp.int32(3), "w": jnp.arange(4.0)}
    with jax.enable_x64(True):
        wide = {"step": jnp.int32(3), "w": jnp.arange(4.0)}
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, wide)
            checkpoints.save(4, narrow)
            with pytest.raises(
                UnlikeCheckpoint,
                match=r": w is float32\[4\] there, float64\[4\] here; .* set JAX_ENABLE_X64=0$",
            ):
                checkpoints.restore(4, wide, replicated(1))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            UnlikeCheckpoint,
            match=r": w is float64\[4\] there, float32\[4\] here; .* set JAX_ENABLE_X64=1$",
        ):
            checkpoints.restore(3, narrow, replicated(1))


@pytest.mark.parametrize(
    "weights, named",
    [
        (
            {"w": jnp.ones(5), "b": jnp.ones((), jnp.bfloat16)},
            r"weights/w is float32\[4\] there, float32\[5\] here$",
        ),
        ({"w": jnp.ones(4)}, r"weights/b is bfloat16\[\] there, missing here$"),
        (
            {"v": jnp.ones(4), "b": jnp.ones(())},
            r"weights/b is bfloat16\[\] there, float32\[\] here, and 2 more differ$",
        ),
    ],
)
def test_a_checkpoint_of_other_shapes_or_names_is_not_called_damaged(weights, named, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3))
        with pytest.raises(UnlikeCheckpoint, match=named):
            checkpoints.restore(3, State(jnp.int32(0), weights), replicated(1))
