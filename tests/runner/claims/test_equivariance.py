"""What a pose knows: rendered views against plain ones, the read-out of made-up poses, and the
experiment on untrained networks.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from experiments import equivariance, report
from experiments.claims import equivariance as claim
from experiments.claims import experiment
from experiments.claims.networks import NETWORKS, with_model
from experiments.data.toynorb_builders import ToyNorb
from experiments.equivariance import (
    RANGES,
    SWEEP_STEPS,
    Snapshots,
    explained,
    pose_of,
    random_views,
    sweep_views,
)
from experiments.learning.configs import as_dynamic
from experiments.toynorb.scene import View, photograph, snapshots
from experiments.toynorb.shapes import CATEGORIES, toy

SIZE = 24


def view(**changed):
    return {
        "elevation": 40.0,
        "azimuth": 60.0,
        "roll": 0.0,
        "zoom": 1.0,
        "right": 0.0,
        "down": 0.0,
    } | changed


@pytest.mark.slow
def test_a_toy_moves_in_its_picture_as_the_view_says():
    changes = [{}, {"roll": 90.0}, {"right": 3 / SIZE}, {"down": -2 / SIZE}, {"zoom": 1.3}]
    views = View(
        *(
            jnp.array([view(**change)[field] for change in changes], jnp.float32)
            for field in View._fields
        )
    )
    images = np.asarray(snapshots(toy(4, 1), views, jnp.full(len(changes), 2), size=SIZE)).astype(
        int
    )
    plain, rolled, right, up, larger = images
    differing = lambda a, b: np.abs(a - b)[:, 4:-4, 4:-4].mean()  # noqa: E731
    contrast = differing(plain, np.roll(plain, 3, axis=2))
    assert differing(rolled, np.rot90(plain, -1, axes=(1, 2))) < 0.2 * contrast
    assert differing(right, np.roll(plain, 3, axis=2)) < 0.2 * contrast
    assert differing(up, np.roll(plain, -2, axis=1)) < 0.2 * contrast
    ground = plain[:, 0, 0].mean()
    size = lambda pair: (np.abs(pair - ground) > 12).sum()  # noqa: E731
    assert size(larger) / size(plain) == pytest.approx(1.3**2, rel=0.15)


@pytest.mark.slow
def test_an_unmoved_toy_is_that_of_the_data_set():
    views = View(*(jnp.array([value], jnp.float32) for value in view().values()))
    image = snapshots(toy(4, 1), views, jnp.array([2]), size=SIZE)[0]
    np.testing.assert_array_equal(
        image, photograph(toy(4, 1), views.elevation, views.azimuth, size=SIZE)[0, 2]
    )


def test_views_are_drawn_from_all_ranges_and_swept_one_by_one():
    views = random_views(jax.random.key(0), 500)
    swept = sweep_views()
    for index, (name, (low, high)) in enumerate(RANGES.items()):
        drawn = np.asarray(getattr(views, name))
        assert (
            low <= drawn.min() < low + 0.05 * (high - low)
            and high - 0.05 * (high - low) < drawn.max() <= high
        )
        field = np.asarray(getattr(swept, name)).reshape(len(RANGES), SWEEP_STEPS)
        np.testing.assert_allclose(field[index], np.linspace(low, high, SWEEP_STEPS), rtol=1e-6)
        np.testing.assert_allclose(
            np.delete(field, index, axis=0), (low + high) / 2, rtol=1e-5, atol=1e-6
        )


def made_up(num_views=12):
    """Snapshots without pictures."""
    instances = sorted(instance for split in ToyNorb.SPLITS.values() for instance in split)
    number = len(CATEGORIES) * len(instances) * num_views
    labels = np.repeat(np.arange(len(CATEGORIES)), number // len(CATEGORIES))
    views = jax.device_get(random_views(jax.random.key(1), number))
    taken = np.tile(np.repeat(instances, num_views), len(CATEGORIES))
    return Snapshots(
        np.zeros((number, 48, 48, 2), np.uint8),
        labels.astype(np.int32),
        taken.astype(np.int32),
        views,
    )


def test_what_is_in_the_features_is_explained_category_by_category():
    taken = made_up()
    elevation, roll = (
        np.asarray(getattr(taken.views, name))[:, None] for name in ("elevation", "roll")
    )
    noise = np.random.default_rng(0).normal(size=(len(elevation), 1))
    sign = np.where(taken.labels % 2, 1.0, -1.0)[:, None]  # each category has a map of its own
    found = explained(np.concatenate([sign * elevation / 10, roll / 10 + noise], axis=1), taken)
    assert found["elevation"] > 0.999 and 0.4 < found["roll"] < 0.9
    assert all(value < 0.15 for name, value in found.items() if name not in ("elevation", "roll"))
    angle = np.radians(np.asarray(taken.views.azimuth))[:, None]
    assert (
        explained(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), taken)["azimuth"] > 0.999
    )


def test_components_keep_what_varies_most():
    random = np.random.default_rng(0)
    wide, narrow = random.normal(size=(40, 3)), 1e-3 * random.normal(size=(40, 20))
    turned = (
        np.concatenate([wide, narrow], axis=1) @ np.linalg.qr(random.normal(size=(23, 23)))[0] + 5
    )
    found = equivariance.principal_components(turned, np.arange(40) < 30, 3)
    exact = wide - wide[:30].mean(0)
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, atol=0.05)


def test_components_are_those_of_each_category():
    """What only tells categories apart takes the place of none of them."""
    taken = made_up()
    elevation = np.asarray(taken.views.elevation)
    features = np.stack([1000.0 * taken.labels, elevation, 0.1 * elevation], axis=1)
    assert explained(features, taken, 1)["elevation"] > 0.999


def test_the_pose_that_is_read_is_that_of_the_class():
    class Routed:
        activation_logits = jnp.zeros((2, 1, 1, 3))
        poses = jnp.arange(2 * 3 * 16.0).reshape(2, 1, 1, 3, 4, 4)

    found = pose_of({"class_caps": Routed}, jnp.array([2, 0]))
    np.testing.assert_array_equal(found, [np.arange(32, 48), np.arange(48, 64)])


def test_networks_are_read_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        NETWORKS,
        "dynamic",
        lambda config: with_model(as_dynamic(config), dynamic_channels=2, dynamic_capsules=1),
    )
    monkeypatch.setitem(NETWORKS, "cnn", tiny_run.cnn(4))
    taken = made_up(2)
    images = np.random.default_rng(0).integers(0, 256, taken.images.shape).astype(np.uint8)

    monkeypatch.setattr(experiment, "check_runs", lambda *_: None)
    monkeypatch.setattr(experiment, "trained", lambda *_: {})
    monkeypatch.setattr(equivariance, "load_network", tiny_run.untrained_toy_network)
    monkeypatch.setattr(
        equivariance, "take_snapshots", lambda number: taken._replace(images=images)
    )
    monkeypatch.setattr(equivariance, "take_sweep", lambda: images[: len(RANGES) * SWEEP_STEPS])
    words = ["--networks", "dynamic", "cnn", "--seeds", "3", "--runs", str(tmp_path)]
    assert equivariance.main(words) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "toynorb" / "equivariance" / "seed-3.json").read_text())
    features = {layer: found["features"] for layer, found in record["layers"].items()}
    assert features == {"dynamic: pose": 16, "cnn: hidden units": 4, "cnn: logits": 5}
    sweeps = np.load(tmp_path / "toynorb" / "equivariance" / "seed-3.npz")
    assert (
        sweeps["dynamic: pose"].shape == (len(RANGES) * SWEEP_STEPS, 16) and "view_roll" in sweeps
    )
    (section,) = report.gather(tmp_path)
    table = section.tables[0].markdown()
    assert printed.endswith(f"{table}\n") and len(section.pictures) == 1

    monkeypatch.setattr(
        equivariance, "load_network", lambda *_: pytest.fail("a finished seed was repeated")
    )
    assert equivariance.main(words) == 0
    assert capsys.readouterr().out.endswith(f"{table}\n")


def records():
    def layer(size, value):
        return {"features": size, "r_squared": {name: value for name in RANGES}}

    return [
        {
            "seed": seed,
            "seconds": 60.0,
            "command": "a command",
            "networks": ["capsules", "cnn"],
            "num_views": 100,
        }
        | {
            "layers": {
                "capsules: pose": layer(16, 0.5 + 0.01 * seed),
                "cnn: hidden units": layer(1024, 0.3),
            }
        }
        for seed in range(3)
    ]


def test_layers_are_compared_and_drawn():
    sweeps = {"images": np.zeros((len(RANGES) * SWEEP_STEPS, 8, 8, 2), np.uint8)}
    sweeps |= {f"view_{name}": np.asarray(field) for name, field in sweep_views()._asdict().items()}
    sweeps["capsules: pose"] = np.arange(54.0)[:, None] * np.arange(16)
    section = claim.section("toynorb", records(), sweeps)
    values, verdicts = section.tables
    assert values.rows[0] == ("capsules: pose", "16", *["51.0 ± 2.5"] * 6)
    assert verdicts.rows[0][1:] == ("21.0 ± 2.5", "holds")
    bars, poses = section.pictures
    heights = [
        [bar.get_height() for bar in group]
        for group in bars.figure.axes[0].containers
        if hasattr(group, "patches")
    ]
    np.testing.assert_allclose(heights, [[0.51] * 6, [0.3] * 6])
    panel = poses.figure.subfigs[2].axes[-1]
    assert panel.get_xlabel() == "roll (degrees)"
    np.testing.assert_allclose(panel.lines[3].get_xydata()[:, 1], 3 * np.arange(-4, 5))
    assert panel.lines[3].get_color() == claim.COORDINATES[3][0]
    for picture in section.pictures:
        picture.figure.savefig("/dev/null", format="png", dpi=30)


def test_toys_that_were_held_out_cannot_be_read(tmp_path, capsys):
    for flags in ("--holdout-instances 8", "--factor azimuth --train-values 0"):
        assert equivariance.main(["--runs", str(tmp_path), f"--flags={flags}"]) == 2
        assert (
            "must be trained on all views of all toys of the training split"
            in capsys.readouterr().err
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--dataset mnist", "dataset must be toynorb, whose toys can be rendered anew; got mnist"),
        (
            "--networks cnn-25k",
            "networks must be of capsules, dynamic, cnn, each once; got cnn-25k",
        ),
        ("--networks cnn cnn", "each once; got cnn, cnn"),
        ("--num-views 0", "num_views must be positive; got 0"),
    ],
)
def test_what_cannot_be_read_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        equivariance.main(flags.split())
    assert message in capsys.readouterr().err
