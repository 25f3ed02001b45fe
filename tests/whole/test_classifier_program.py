"""An exported classifier runs where there is only JAX, and gives what the classifier does."""

import subprocess
import sys

import jax
import numpy as np
import tiny_run

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("emcaps", "flax", "experiments"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(open("a.stablehlo", "rb").read()))
images = np.load("images.npy")
results = {f"{n}-{i}": array for n in (1, 4) for i, array in enumerate(program.call(images[:n]))}
np.savez("results.npz", **results)
"""


def test_an_exported_classifier_needs_neither_emcaps_nor_flax(tmp_path):
    classifier = tiny_run.classifier()
    contents = classifier.export()
    images = classifier.examples.images  # four, for whose number other tests compile, too
    (tmp_path / "a.stablehlo").write_bytes(contents)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-I", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "results.npz") as results:
        for number in (1, 4):
            for place, expected in enumerate(classifier.predict(images[:number])):
                found = results[f"{number}-{place}"]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    program = jax.export.deserialize(bytearray(contents))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for platform in program.platforms:
        lowered = jax.export.export(jax.jit(program.call), platforms=[platform])(images)
        assert lowered.platforms == (platform,)
        assert "tensor<4x3xf32>" in lowered.mlir_module()
