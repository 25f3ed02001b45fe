"""What a classifier says of images in files: `python -m experiments.predict mnist digit.png`.

A classifier is one that comes with emcaps, or a file that `experiments.export` has written; images
are PNG, JPEG or BMP files, and folders of them. What becomes of an image before it is classified is
in data/image_files.py.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from emcaps.pretrained import PRETRAINED, Classifier, load_classifier
from experiments.data.classes import named
from experiments.data.dataset import AFFNIST, DRAWINGS
from experiments.data.image_files import ImageFiles, find_images, read_images
from experiments.devices.hardware import start_jax
from experiments.plots.activations import predictions
from experiments.plots.pictures import draw_all
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError, first_line
from experiments.runtime.records import Record, check_folder, write_atomically
from experiments.runtime.tables import aligned

LIGHT_ON_DARK = ("mnist", "fashion_mnist", AFFNIST, DRAWINGS)  # data sets whose background is black


@dataclasses.dataclass(frozen=True)
class PredictCommand:
    """Classify images, and write predictions.json and a picture, predictions.png."""

    classifier: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CLASSIFIER")]
    """mnist, toynorb, or a file that experiments.export has written."""
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files (PNG, JPEG, BMP), and folders of them. An image that is not of the classifier's
    size is resized. Where the classifier takes stereo pairs, an image twice as wide as its images
    is a pair, the left one on the left; any other is taken for both eyes."""
    invert: bool = False
    """Take dark for light and light for dark: digits of MNIST are light on a dark ground."""
    output: Path = Path("runs", "predict")
    """The folder for predictions.json and predictions.png."""

    def __post_init__(self):
        if not self.paths:
            raise ValueError("IMAGES must be one or more image files or folders; got none")


def run(command: PredictCommand, typed: str) -> None:
    """Classify the images, print the table, and write both files.

    Raises:
        UsageError: there is no such classifier, or not all images can be read.
        RunnerError: the picture cannot be drawn.
    """
    paths, passed_over = find_images(command.paths)
    check_folder(command.output)
    start_jax(1)
    classifier = load(command.classifier)
    files = read_images(paths, classifier.image_shape, command.invert)
    names = [str(path) for path in paths]
    classes, activations, _ = map(np.asarray, classifier.predict(files.images))

    found = [
        of_image(name, int(best), of_each, classifier.class_names)
        | {"height": height, "width": width, "pair": pair}
        for name, best, of_each, (height, width), pair in zip(
            names, classes, activations, files.sizes, files.pairs, strict=True
        )
    ]
    print(table(found))
    if passed_over:
        print(f"passed over, since they are no image files: {named(list(map(str, passed_over)))}")
    for line in remarks(names, files, classifier, command.invert):
        print(line)
    record = {
        "command": typed,
        "classifier": command.classifier,
        "class_names": list(classifier.class_names),
        "inverted": command.invert,
        "passed_over": list(map(str, passed_over)),
        "images": found,
    }
    command.output.mkdir(parents=True, exist_ok=True)
    file = command.output / "predictions.json"
    write_atomically(file, json.dumps(record, indent=2) + "\n")
    (command.output / "predictions.png").unlink(missing_ok=True)  # of other images
    (picture,) = draw_all(
        command.output,
        {
            "predictions": lambda: predictions(
                files.images,
                [path.name for path in paths],
                classes,
                activations,
                classifier.class_names,
            )
        },
    )
    print(f"wrote {file} and {picture}")


def load(name: str) -> Classifier:
    """The classifier of this name, or in this file. Raises UsageError if there is none."""
    if name not in PRETRAINED and Path(name).is_dir():
        raise UsageError(
            f"{name} is a folder; `python -m experiments.export --workdir {name} --out "
            "FILE.safetensors` makes a classifier of the run in it"
        )
    try:
        return load_classifier(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"there is no classifier {name}: {first_line(error)}") from error


def of_image(name: str, best: int, activations: np.ndarray, class_names: Sequence[str]) -> Record:
    """What is found of one image, whose class is `best`; a second class there may not be."""
    second = next((int(j) for j in np.argsort(-activations, kind="stable") if j != best), None)
    record: Record = {"file": name}
    for what, j in (("class", best), ("second", second)):
        if j is not None:
            record |= {what: class_names[j], f"{what}_activation": float(activations[j])}
    return record | {"activations": activations.tolist()}


def table(found: Sequence[Record]) -> str:
    """The two most active classes of each image."""
    rows = [
        [
            record["file"],
            record["class"],
            f"{record['class_activation']:.3f}",
            record.get("second", ""),
            f"{record['second_activation']:.3f}" if "second" in record else "",
        ]
        for record in found
    ]
    return aligned([["image", "class", "activation", "second", "activation"], *rows])


def remarks(
    names: Sequence[str], files: ImageFiles, classifier: Classifier, invert: bool
) -> list[str]:
    """What was done to which images, and which may need something else, in words."""
    height, width, channels = classifier.image_shape
    on_dark = classifier.facts.get("dataset") in LIGHT_ON_DARK
    # Of most of the pixels, whatever is drawn on them.
    light = np.median(files.images, axis=(1, 2, 3)) > 127
    said: dict[str, list[str]] = {}
    for name, (rows, columns), pair, is_light in zip(
        names, files.sizes, files.pairs, light, strict=True
    ):
        of_one = rows, columns / (1 + pair)
        for remark, holds in {
            f"resized to {width}x{height} (bilinear)": of_one != (height, width),
            "stretched, since their proportions are others": of_one[0] * width
            != of_one[1] * height,
            "stereo pairs, left and right": pair,
            "taken for both eyes": channels == 2 and not pair,
            "inverted": invert,
            "the classifier has learned from images on a dark ground; that of these is light "
            f"(is it with {'--no-invert' if invert else '--invert'} that they should be read?)": (
                on_dark and is_light
            ),
        }.items():
            if holds:
                said.setdefault(remark, []).append(name)
    return [f"{remark}: {named(of)}" for remark, of in said.items()]


main = entry_point("experiments.predict", PredictCommand, run)

if __name__ == "__main__":
    sys.exit(main())
