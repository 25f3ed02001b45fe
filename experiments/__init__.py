"""The experiment runner: data sets, training, evaluation and pictures.

It imports emcaps, never the reverse. Importing it fails in one line where it cannot work, and this
file, which says so, is read by Python 3.6 and newer.
"""

import importlib.util
import platform
import sys

OLDEST_PYTHON = (3, 11)
# What emcaps and its extra `experiments` install, by the names that are imported.
LIBRARY = ("jax", "flax", "numpy", "safetensors")
EXTRA = (
    "tyro",
    "optax",
    "tensorflow_datasets",
    "importlib_resources",
    "PIL",
    "orbax",
    "flatbuffers",
    "matplotlib",
    "scipy",
    "tqdm",
    "markdown_it",
    "mdit_py_plugins",
)


def obstacle() -> "str | None":
    """What keeps the experiments from working here, and what to do about it; None if nothing."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(str(number) for number in OLDEST_PYTHON)
        return f"emcaps needs Python {oldest} or newer; this is {platform.python_version()}"
    missing = [name for name in LIBRARY + EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"not installed: {', '.join(missing)}; in the folder of the checkout, run "
            f"{sys.executable} -m pip install -e '.[experiments]'"
        )
    try:
        import jax  # noqa: F401
    except RuntimeError as error:  # as on a processor without AVX
        return f"JAX does not run on this machine: {' '.join(str(error).split())}"
    return None


_obstacle = obstacle()
if _obstacle:
    # While `python -m` looks for its module, that is all there is in sys.argv[0].
    if sys.argv[:1] == ["-m"]:
        print(f"error: {_obstacle}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_obstacle)
