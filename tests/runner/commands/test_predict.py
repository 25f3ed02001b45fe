"""Images in files are classified as arrays are, and nothing is written when one cannot be read."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_run
from PIL import Image

from emcaps.pretrained import save_classifier
from experiments import predict


@pytest.fixture(scope="module")
def classifier():
    """It tells stereo pairs of 15x14 pixels apart, and says that it has learned from digits."""
    return dataclasses.replace(tiny_run.classifier(), facts={"dataset": "mnist"})


@pytest.fixture
def folder(classifier, tmp_path, monkeypatch):
    """The current directory: a classifier, and its four examples as pairs side by side, the last
    as a single image.
    """
    save_classifier(tmp_path / "a.safetensors", classifier)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(classifier.examples.images):
        pair = np.concatenate([image[..., 0], image[..., 1]], axis=1)
        shown = pair if number < 3 else image[..., 0]
        Image.fromarray(shown).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_in_files_are_classified_as_arrays_are(classifier, folder, capsys):
    (folder / "images" / "notes.txt").touch()
    images = classifier.examples.images.copy()
    images[3, ..., 1] = images[3, ..., 0]
    expected = classifier.predict(images)
    assert predict.main(["a.safetensors", "images", "--output", "out"]) == 0

    record = json.loads((folder / "out" / "predictions.json").read_text())
    assert record["command"] == "python -m experiments.predict a.safetensors images --output out"
    assert (record["class_names"], record["passed_over"]) == (["a", "b", "c"], ["images/notes.txt"])
    found = record["images"]
    assert [image["file"] for image in found] == [f"images/{number}.png" for number in range(4)]
    assert [image["pair"] for image in found] == [True, True, True, False]
    np.testing.assert_allclose(
        [image["activations"] for image in found], expected.activations, rtol=1e-5
    )
    assert [image["class"] for image in found] == ["abc"[j] for j in expected.classes]
    ordered = np.sort(expected.activations, axis=-1)
    for place, name in ((-1, "class_activation"), (-2, "second_activation")):
        np.testing.assert_allclose([image[name] for image in found], ordered[:, place], rtol=1e-5)

    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()[1:5]]
    assert [row[1] for row in rows] == [image["class"] for image in found]
    assert [row[2] for row in rows] == [f"{image['class_activation']:.3f}" for image in found]
    assert "stereo pairs, left and right: images/0.png, images/1.png, images/2.png\n" in printed
    assert "taken for both eyes: images/3.png\n" in printed
    assert "passed over, since they are no image files: images/notes.txt\n" in printed
    assert "resized" not in printed and "stretched" not in printed and "inverted" not in printed
    assert (folder / "out" / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_to_images_is_said(classifier, folder, capsys):
    for number in range(4):
        Image.new("L", (28 + number, 30), 200).save(folder / "images" / f"{number}.png")
    assert predict.main(["a.safetensors", "images"]) == 0
    printed = capsys.readouterr().out
    everything = ", ".join(f"images/{number}.png" for number in range(4))
    assert f"resized to 14x15 (bilinear): {everything}\n" in printed
    others = everything.removeprefix("images/0.png, ")
    assert f"stretched, since their proportions are others: {others}\n" in printed
    assert f"(is it with --invert that they should be read?): {everything}\n" in printed
    assert predict.main(["a.safetensors", "images", "--invert"]) == 0
    printed = capsys.readouterr().out
    assert f"inverted: {everything}\n" in printed and "should be read" not in printed


def test_nothing_is_written_when_an_image_cannot_be_read(folder, capsys):
    (folder / "images" / "1.png").write_text("no image")
    (folder / "images" / "2.png").write_bytes(b"\x89PNG")
    assert predict.main(["a.safetensors", "images"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: images/1.png is no PNG, JPEG or BMP file; images/2.png ")
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not (folder / "runs").exists()


def test_a_folder_hides_no_classifier_of_the_package(folder):
    (folder / "mnist").mkdir()
    assert predict.load("mnist").class_names == tuple("0123456789")
