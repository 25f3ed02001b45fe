"""The test session: a CPU that shows itself as two devices, and both float precisions at once.

Nearly all of the time goes into compiling. So programs are compiled without the optimizations that
take longest (of the code of each kernel; which kernels there are stays the same), unless
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` is set, and are kept for the session, for all processes of it
together, in a folder that is deleted after it. The kernels of jaxlib 0.10 are those of its older
emitters, which take half the time, unless `XLA_FLAGS` says `--xla_cpu_use_fusion_emitters=true`.
"""

import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
# Later versions do not know the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    if "xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The workers of pytest-xdist have that of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="emcaps-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
else:
    COMPILED = None

import jax  # after the environment, which it reads when it is imported
import numpy as np
import pytest


def pytest_unconfigure():
    """Delete what this session compiled."""
    if COMPILED is not None:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def optimized():
    """The test runs its programs for longer than it compiles them, so these are worth all
    optimizations.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """The test runs with float64 enabled; the session's default is float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs in float32, and again in float64."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)
