"""The test session: a CPU that shows itself as two devices, and both float precisions at once."""

import os

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # after the environment, which it reads when it is imported
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache


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


@pytest.fixture(scope="module")
def programs_are_compiled_once(tmp_path_factory):
    """For tests that train the same network again and again; compiling it takes most of their time."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
