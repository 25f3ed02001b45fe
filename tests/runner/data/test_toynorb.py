"""The renderer against geometry, the toys, and the builder on a tiny version."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import loading, toynorb_builders
from experiments.toynorb import render, scene, shapes
from experiments.toynorb.shapes import CATEGORIES, INSTANCES, toy
from experiments.toynorb.solids import ball, bounds, box, limb, mirrored, wheel, wing

SIZE = 12  # divisible by the renderer's block


def angles(*degrees):
    return jnp.array(degrees, jnp.float32)


def photograph(category, instance, elevation=40.0, azimuth=60.0):
    """uint8 `[6, 2, SIZE, SIZE]`."""
    return np.asarray(
        scene.photograph(toy(category, instance), angles(elevation), angles(azimuth), size=SIZE)
    )[0]


def one(solid):
    """A shape of a single solid."""
    return render.Shape(*(jnp.asarray(field)[None] for field in solid))


def camera_at(elevation, azimuth, distance=5.0, extent=0.3, target=(0.0, 0.0, 0.6)):
    right = scene.direction(jnp.float32(0), jnp.float32(azimuth + 90))
    position = jnp.array(target) + distance * scene.direction(
        jnp.float32(elevation), jnp.float32(azimuth)
    )
    return render.Camera(position, jnp.array(target), right, jnp.float32(extent))


def light_from(elevation, azimuth, lamp=0.6, ambient=0.3, hardness=3.0):
    direction = scene.direction(jnp.float32(elevation), jnp.float32(azimuth))
    return render.Light(direction, jnp.float32(lamp), jnp.float32(ambient), jnp.float32(hardness))


@pytest.mark.slow
def test_the_same_toy_is_the_same_to_the_last_bit():
    before = photograph(1, 3)
    toy.cache_clear()
    np.testing.assert_array_equal(before, photograph(1, 3))


@pytest.mark.slow
def test_toys_differ():
    images = {
        photograph(category, instance).tobytes()
        for category in range(len(CATEGORIES))
        for instance in range(INSTANCES)
    }
    assert len(images) == len(CATEGORIES) * INSTANCES


@pytest.mark.slow
def test_a_turn_of_360_degrees_is_none():
    np.testing.assert_array_equal(photograph(2, 5, azimuth=20.0), photograph(2, 5, azimuth=380.0))
    assert (photograph(2, 5, azimuth=20.0) != photograph(2, 5, azimuth=200.0)).any()


def test_pairs_differ_but_little():
    for category in range(len(CATEGORIES)):
        left, right = photograph(category, 8).astype(float)[0]
        other = photograph(category, 8, azimuth=150.0).astype(float)[0, 0]
        assert 0 < np.abs(left - right).mean() < np.abs(left - other).mean()


def test_pictures_are_objects_in_the_middle_of_a_plain_light_ground():
    for category in range(len(CATEGORIES)):
        images = photograph(category, 4)
        corners = images[..., [0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert images.dtype == np.uint8 and images.shape == (6, 2, SIZE, SIZE)
        assert (corners[:, :, 0] > 140).all() and (corners < 250).all()
        assert np.median(np.ptp(corners, -1)) <= 1
        assert (images.min((1, 2, 3)) < corners[:, 0, 0] - 40).all()


@jax.jit
def silhouette(shape, elevation, azimuth):
    """Where a pixel shows the toy, in 24x24 pixels, to the left eye."""
    camera = jax.tree.map(lambda field: field[0], scene.stereo(elevation, azimuth))
    _, on_object = render.trace(shape, camera.position, render.rays(camera, 24))
    return on_object.reshape(24, 24)


@pytest.mark.parametrize("category", range(len(CATEGORIES)))
def test_toys_stand_on_the_ground_and_fit_into_every_picture(category):
    for instance in range(INSTANCES):
        shape = toy(category, instance)
        assert abs(bounds(jax.tree.map(np.asarray, shape))[0][2]) < 1e-5
        for elevation, azimuth in ((30.0, 0.0), (30.0, 100.0), (70.0, 40.0)):
            seen = np.asarray(silhouette(shape, np.float32(elevation), np.float32(azimuth)))
            assert 12 < seen.sum() < 350
            assert not seen[[0, -1]].any() and not seen[:, [0, -1]].any()


def test_rays_meet_a_ball_where_geometry_says():
    radius, size = 0.5, 64
    middle = np.array([0.05, -0.1, 0.6])
    shape = one(ball(tuple(middle), (2 * radius,) * 3))
    camera = camera_at(35.0, 25.0)

    @jax.jit
    def traced(shape, camera):
        direction = render.rays(camera, size)
        return direction, *render.trace(shape, camera.position, direction)

    direction, depth, on_object = traced(shape, camera)
    origin, rays = (
        np.asarray(camera.position, np.float64),
        np.stack([np.asarray(axis, np.float64) for axis in direction], 1),
    )
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, atol=1e-6)
    along = rays @ (middle - origin)
    miss = np.linalg.norm(middle - origin - along[:, None] * rays, axis=1)
    clearly = np.abs(miss - radius) > 0.015
    np.testing.assert_array_equal(np.asarray(on_object)[clearly], (miss < radius)[clearly])

    inside = miss < 0.95 * radius
    expected = along - np.sqrt(np.maximum(radius**2 - miss**2, 0))
    np.testing.assert_allclose(np.asarray(depth)[inside], expected[inside], atol=0.01)
    # A ball at distance D covers a disc of tangent r / sqrt(D^2 - r^2), seen from straight ahead.
    distance = np.linalg.norm(middle - origin)
    area = np.pi * radius**2 / (distance**2 - radius**2) / (2 * float(camera.extent)) ** 2
    assert abs(np.asarray(on_object).mean() / area - 1) < 0.04
    ground = ~np.asarray(on_object)
    heights = (origin + np.asarray(depth)[:, None] * rays)[:, 2]
    np.testing.assert_allclose(heights[ground], 0, atol=1e-5)


def test_normals_of_a_ball_point_away_from_its_middle():
    shape = one(ball((0.0, 0.0, 0.6), (1.0, 1.0, 1.0)))
    camera = camera_at(40.0, 0.0)
    look = lambda shape, camera: render.look(shape, camera.position, render.rays(camera, 24))  # noqa: E731
    surface = jax.jit(look)(shape, camera)
    chosen = np.asarray(surface.on_object)
    outwards = (np.stack(surface.point, 1)[chosen] - [0, 0, 0.6]) / 0.5
    np.testing.assert_allclose(np.stack(surface.normal, 1)[chosen], outwards, atol=0.03)


@pytest.mark.parametrize(
    "solid",
    [
        box((0.1, 0.2, 0.5), (0.6, 0.4, 0.3), edge=0.05),
        box((0.0, 0.0, 0.5), (0.6, 0.4, 0.3), narrowing=(0.6, 0.8)),
        limb((0.0, 0.0, 0.3), (0.5, 0.2, 0.7), 0.2, 0.1),
        wheel((0.0, 0.3, 0.2), 0.2, 0.1),
        wing((0.0, 0.0, 0.3), (-0.3, 0.8, 0.4), 0.4, 0.2, 0.06, 0.04),
        mirrored(wing((0.0, 0.0, 0.3), (-0.3, 0.8, 0.4), 0.4, 0.2, 0.06, 0.04))[1],
    ],
)
def test_distances_of_solids_never_let_a_ray_jump_over_the_surface(solid):
    """Rotations are rotations, and the distance changes no faster than the step allows for."""
    np.testing.assert_allclose(solid.rotation @ solid.rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(solid.rotation) > 0.99
    random = np.random.default_rng(0)
    points = random.uniform(-1, 1.2, (3, 4000)).astype(np.float32)
    others = (points + random.normal(0, 0.05, points.shape)).astype(np.float32)
    here, there = (
        np.asarray(render.distance(one(solid), tuple(jnp.asarray(place))))
        for place in (points, others)
    )
    assert (
        np.abs(here - there) / np.linalg.norm(points - others, axis=0)
    ).max() < 1 / render.STEP + 0.05
    assert (here < 0).any() and (here > 0).any()


def test_light_comes_from_where_the_lamp_is():
    shape, camera = one(ball((0.0, 0.0, 0.6), (1.0, 1.0, 1.0))), camera_at(40.0, 0.0)
    picture = jax.jit(partial(render.render, size=24))
    # The camera looks along -x: its right is +y, which is azimuth 90.
    right = np.asarray(picture(shape, camera, light_from(40.0, 90.0)))
    left = np.asarray(picture(shape, camera, light_from(40.0, -90.0)))
    ball_rows = slice(8, 16)
    assert right[ball_rows, 14:17].mean() > right[ball_rows, 7:10].mean() + 0.1
    # Shadows are those of a pixel's upper left sample, so mirror images differ by half a pixel of
    # shadow.
    assert np.abs(left - right[:, ::-1]).mean() < 0.01
    # The ball's shadow falls on the other side of it.
    assert right[12:20, :6].min() < 0.5 * right[0, -1] < 0.9 * right[12:20, -6:].min()


def test_brightness_is_from_0_to_1_and_adds_up_on_bare_ground():
    shape, camera = one(ball((0.0, 0.0, 0.2), (0.3, 0.3, 0.3))), camera_at(40.0, 0.0)
    image = np.asarray(render.render(shape, camera, light_from(30.0, 0.0), size=SIZE))
    assert image.min() >= 0 and image.max() <= 1
    np.testing.assert_allclose(image[0, 0], 0.6 * np.sin(np.radians(30)) + 0.3, atol=1e-5)
    glaring = render.render(shape, camera, light_from(80.0, 0.0, lamp=5.0), size=SIZE)
    assert float(jnp.max(glaring)) == 1.0


def test_many_pictures_in_one_call_are_those_of_single_calls():
    shapes = [
        one(ball((0.0, 0.1, 0.5), (0.6, 0.6, 0.6))),
        one(box((0.0, 0.0, 0.3), (0.9, 0.4, 0.6))),
    ]
    cameras = [camera_at(30.0, 0.0), camera_at(60.0, 120.0)]
    lights = [light_from(40.0, 0.0), light_from(60.0, 200.0)]
    stacked = (
        jax.tree.map(lambda *fields: jnp.stack(fields), *trees)
        for trees in (shapes, cameras, lights)
    )
    together = jax.vmap(partial(render.render, size=SIZE))(*stacked)
    for index, single in enumerate(zip(shapes, cameras, lights, strict=True)):
        np.testing.assert_allclose(together[index], render.render(*single, size=SIZE), atol=0.02)


def three_views():
    """Arguments of `scene.photograph`, and a size of four blocks."""
    shape = one(ball((0.1, 0.0, 0.4), (0.9, 0.5, 0.8)))
    return (shape, angles(35.0, 60.0, 50.0), angles(20.0, 150.0, 200.0)), 2 * SIZE


def test_accelerators_take_all_views_and_rays_together():
    """To them each step of a loop is many launches.

    Left are those along rays: to the object, to the lamp, and of the slope.
    """
    views, size = three_views()
    traced = scene.photograph.trace(*views, size=size)
    loops = [
        traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.while")
        for name in ("cpu", "cuda", "tpu")
    ]
    assert loops == [6, 3, 3]


@pytest.mark.slow
def test_views_taken_together_are_those_taken_one_by_one(monkeypatch):
    views, size = three_views()
    one_by_one = np.asarray(scene.photograph(*views, size=size)).astype(int)
    together = partial(jax.lax.map, batch_size=render.AT_ONCE)
    monkeypatch.setattr(
        scene, "by_platform", lambda function, *given: function(*given, each=together)
    )
    differences = np.abs(
        jax.jit(partial(scene.photograph.__wrapped__, size=size))(*views).astype(int) - one_by_one
    )
    assert differences.max() <= 1


def test_the_grid_has_every_combination_of_factors_once():
    full = toynorb_builders.ToyNorb
    seen = set()
    for split, instances in full.SPLITS.items():
        sweeps = full.sweeps(full, split)  # pyright: ignore[reportArgumentType]
        pairs = {
            (*sweep, azimuth, lighting)
            for sweep in sweeps
            for azimuth in full.AZIMUTH_LABELS
            for lighting in range(6)
        }
        assert len(pairs) == len(sweeps) * 18 * 6 == 24300
        assert {pair[1] for pair in pairs} == set(instances)
        seen |= pairs
    assert len(seen) == 48600


def test_toys_to_tune_on_are_of_the_test_toys_kinds_and_none_of_the_fifty(monkeypatch):
    tuning, full = toynorb_builders.ToyNorbTuning, toynorb_builders.ToyNorb
    assert tuning.SPLITS["train"] == full.SPLITS["train"]
    assert len(tuning.sweeps(tuning, "test")) * 18 * 6 == 8100  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(
        shapes, "MAKERS", [lambda dice, variant: (float(dice.between(0, 1)), variant)] * 5
    )
    monkeypatch.setattr(shapes, "assemble", lambda made, *_: made)
    known, others = (
        [toy.__wrapped__(0, i) for i in instances]
        for instances in (range(10), tuning.SPLITS["test"])
    )
    tested = [known[instance] for instance in full.SPLITS["test"]]
    assert [variant for _, variant in tested] == [variant for _, variant in others]
    assert len({number for number, _ in known + others}) == 15


class Tiny(toynorb_builders.ToyNorb, skip_registration=True):
    """Two instances a category at two elevations and one azimuth."""

    name = "toynorb"
    SIZE = SIZE
    SPLITS = {"train": (4,), "test": (0,)}  # noqa: RUF012
    ELEVATION_LABELS = (0, 8)
    AZIMUTH_LABELS = (3,)


def test_as_many_sweeps_are_rendered_at_a_time_as_there_are_processors_for(tmp_path, monkeypatch):
    workers = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers):
            workers.append(max_workers)
            super().__init__(max_workers)

    monkeypatch.setattr(toynorb_builders, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(Tiny, "render", lambda *_: [])
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    tiny = Tiny(data_dir=tmp_path)
    sweeps = [sweep for sweep, _ in tiny.render_split("train")]
    assert sweeps == tiny.sweeps("train") and workers == [2]


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_what_the_builder_writes_stock_tfds_reads(tmp_path, monkeypatch):
    tiny = Tiny(data_dir=tmp_path)
    assert not tiny.url_infos
    tiny.download_and_prepare(file_format="array_record")
    assert Path(tiny.data_path) == tmp_path / "toynorb" / "1.0.0"
    stock = tfds.builder_from_directory(tiny.data_path)
    assert stock.info.supervised_keys == ("image", "label_category")
    smallnorb = tfds.builder("smallnorb").info.features
    assert {name: feature.np_dtype for name, feature in stock.info.features.items()} == {
        name: feature.np_dtype for name, feature in smallnorb.items()
    }
    for label in (
        "label_category",
        "instance",
        "label_elevation",
        "label_azimuth",
        "label_lighting",
    ):
        assert stock.info.features[label].names == smallnorb[label].names
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded = loading.load_tfds(Tiny(data_dir=tmp_path))._asdict()
    for split, instance in (("train", 4), ("test", 0)):
        source = tfds.data_source("toynorb", split=split, data_dir=tmp_path, download=False)
        examples = [source[i] for i in range(len(source))]
        assert len(examples) == 5 * 1 * 2 * 1 * 6
        assert len(
            {(e["label_category"], e["label_elevation"], e["label_lighting"]) for e in examples}
        ) == len(examples)
        for example in examples[:10]:
            elevation, azimuth = scene.ELEVATIONS[example["label_elevation"]], scene.AZIMUTHS[3]
            images = photograph(example["label_category"], instance, elevation, azimuth)[
                example["label_lighting"]
            ]
            np.testing.assert_array_equal(example["image"][..., 0], images[0])
            np.testing.assert_array_equal(example["image2"][..., 0], images[1])
            assert example["instance"] == instance and example["label_azimuth"] == 3

        pairs = np.stack(
            [np.concatenate([example["image"], example["image2"]], -1) for example in examples]
        )
        np.testing.assert_array_equal(loaded[f"{split}_images"], pairs)
        for factor, feature in tiny.factor_features.items():
            np.testing.assert_array_equal(
                loaded[f"{split}_factors"][factor], [example[feature] for example in examples]
            )


KILLED = """
import os, signal
import numpy as np
from experiments.data import toynorb_builders

class Killed(toynorb_builders.ToyNorb, skip_registration=True):
    name, SIZE = "toynorb", 12
    def render(self, sweep):
        if sweep.category == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return [[[toynorb_builders.encode_png(np.zeros((12, 12), np.uint8))] * 2] * 6] * 18

Killed(data_dir=os.environ["DATA"]).download_and_prepare(file_format="array_record")
"""


def test_a_kill_half_way_leaves_nothing_that_is_read(tmp_path):
    environment = os.environ | {"DATA": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=root, env=environment, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert any((tmp_path / "toynorb").iterdir())  # it had begun
    tiny = Tiny(data_dir=tmp_path)
    assert not Path(tiny.data_path).exists() and not tiny.is_prepared()
    with pytest.raises(tfds.core.DatasetNotFoundError):
        tfds.builder("toynorb", data_dir=tmp_path)
    tiny.download_and_prepare(file_format="array_record")
    assert tfds.builder_from_directory(tiny.data_path).info.splits["train"].num_examples == 60


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self, sweep):
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "render", fail)
        with pytest.raises(RuntimeError, match="crash"):
            Tiny(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    assert not Path(Tiny(data_dir=tmp_path).data_path).exists()
    assert not list((tmp_path / "toynorb").glob("*"))
