"""A TFDS builder that renders its data: a stand-in for smallNORB that any machine can make."""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from experiments.data.tfds_builders import NorbLayout, encode_png
from experiments.runtime.processes import processors
from experiments.toynorb.scene import AZIMUTHS, ELEVATIONS, LIGHTINGS, photograph
from experiments.toynorb.shapes import CATEGORIES, INSTANCES, toy


class Sweep(NamedTuple):
    """Images of one toy at one elevation, from all azimuths, in all lightings."""

    category: int
    instance: int
    elevation: int  # a label, of ELEVATIONS


class ToyNorb(NorbLayout, tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """24,300 + 24,300 stereo pairs of 50 toys; features, factors and split are smallNORB's, the
    images are 48 x 48.

    Subclasses may change the attributes below, together with the name.

    Attributes:
        SIZE: of the images.
        SPLITS: the instances of each split, the same of all categories.
        ELEVATION_LABELS: which elevations.
        AZIMUTH_LABELS: which azimuths.
    """

    name = "toynorb"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    url_infos = {}  # noqa: RUF012

    SIZE = 48
    SPLITS = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}  # noqa: RUF012
    ELEVATION_LABELS = tuple(range(len(ELEVATIONS)))
    AZIMUTH_LABELS = tuple(range(len(AZIMUTHS)))

    def _info(self) -> tfds.core.DatasetInfo:
        image = {"shape": (self.SIZE, self.SIZE, 1), "dtype": np.uint8, "encoding_format": "png"}
        return tfds.core.DatasetInfo(
            builder=self,
            description=str(type(self).__doc__).partition("\n")[0],
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(**image),
                    "image2": tfds.features.Image(**image),
                    "label_category": tfds.features.ClassLabel(names=list(CATEGORIES)),
                    "instance": tfds.features.ClassLabel(
                        num_classes=max(INSTANCES, 1 + max(self.SPLITS["test"]))
                    ),
                    "label_elevation": tfds.features.ClassLabel(num_classes=len(ELEVATIONS)),
                    "label_azimuth": tfds.features.ClassLabel(num_classes=len(AZIMUTHS)),
                    "label_lighting": tfds.features.ClassLabel(num_classes=len(LIGHTINGS)),
                }
            ),
            supervised_keys=("image", "label_category"),
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        key = 0
        for sweep, pngs in self.render_split(split):
            for azimuth, lighting in product(
                range(len(self.AZIMUTH_LABELS)), range(len(LIGHTINGS))
            ):
                left, right = pngs[azimuth][lighting]
                labels = {
                    "label_category": sweep.category,
                    "instance": sweep.instance,
                    "label_elevation": sweep.elevation,
                    "label_azimuth": self.AZIMUTH_LABELS[azimuth],
                    "label_lighting": lighting,
                }
                yield key, {"image": left, "image2": right} | labels
                key += 1

    def sweeps(self, split: str) -> list[Sweep]:
        """What is to be rendered, in this order."""
        return [
            Sweep(*labels)
            for labels in product(range(len(CATEGORIES)), self.SPLITS[split], self.ELEVATION_LABELS)
        ]

    def render_split(self, split: str) -> Iterator[tuple[Sweep, list[Any]]]:
        """Render sweep by sweep, as many at a time as there are processors for this process; yields
        PNG files [azimuth][lighting][left, right].
        """
        workers = processors()
        sweeps = self.sweeps(split)
        pairs = len(self.AZIMUTH_LABELS) * len(LIGHTINGS)
        progress = tqdm(
            total=pairs * len(sweeps),
            desc=f"rendering {self.name} {split}",
            unit=" pairs",
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        waiting: deque[tuple[Sweep, Future]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            with progress:
                for sweep in sweeps:
                    waiting.append((sweep, pool.submit(self.render, sweep)))
                    if len(waiting) > 2 * workers:
                        done, future = waiting.popleft()
                        yield done, future.result()
                        progress.update(pairs)
                for done, future in waiting:
                    yield done, future.result()
                    progress.update(pairs)
        finally:
            pool.shutdown(cancel_futures=True)

    def render(self, sweep: Sweep) -> list[Any]:
        """The PNG files of a sweep, [azimuth][lighting][left, right]."""
        azimuths = jnp.array([AZIMUTHS[label] for label in self.AZIMUTH_LABELS], jnp.float32)
        elevations = jnp.full_like(azimuths, ELEVATIONS[sweep.elevation])
        images = photograph(
            toy(sweep.category, sweep.instance), elevations, azimuths, size=self.SIZE
        )
        return [[[encode_png(eye) for eye in pair] for pair in view] for view in np.asarray(images)]


class ToyNorb96(ToyNorb, skip_registration=True):
    """toynorb in 96 x 96, the original size of smallNORB."""

    name = "toynorb96"
    SIZE = 96


class ToyNorbTuning(ToyNorb, skip_registration=True):
    """What to choose hyper-parameters on: toynorb's training toys, and in place of its test toys
    others of the same kinds.

    Of these there are three elevations only, so that many networks can be scored.
    """

    name = "toynorb_tuning"
    SPLITS = {  # noqa: RUF012
        "train": ToyNorb.SPLITS["train"],
        "test": tuple(10 + instance for instance in ToyNorb.SPLITS["test"]),
    }

    def sweeps(self, split: str) -> list[Sweep]:
        return [
            sweep
            for sweep in ToyNorb.sweeps(self, split)
            if split == "train" or sweep.elevation in (1, 4, 7)
        ]
