"""What a command says of the hardware: which devices it gets, and what is refused."""

import jax
import pytest

from experiments.devices.hardware import Hardware, choose_devices, describe, programs_kept_in
from experiments.runtime.errors import RunnerError


def test_devices_are_chosen_to_divide_the_batch():
    assert len(choose_devices(8)) == 2
    assert len(choose_devices(7)) == 1
    assert describe(choose_devices(8, 1)) == "1 x cpu"


def test_a_batch_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(
        RunnerError,
        match="batch of 7 cannot be divided among 2 devices; the nearest that can: 6 and 8",
    ):
        choose_devices(7, 2)
    with pytest.raises(RunnerError, match=r"the nearest that can: 2$"):
        choose_devices(1, 2)


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(
        RunnerError, match=f"there are {jax.device_count()} devices .*; 99 were requested"
    ):
        choose_devices(99, 99)


def test_groups_that_share_parent_types_count_once():
    assert len(choose_devices(7, 2, model_axis=2)) == 2
    assert len(choose_devices(7, model_axis=2)) == 2
    with pytest.raises(
        RunnerError, match="1 devices cannot be divided into groups of 2, the model axis"
    ):
        choose_devices(8, 1, model_axis=2)
    with pytest.raises(RunnerError, match=r"there are 2 devices .*; 3 were requested"):
        choose_devices(8, model_axis=3)


def test_parts_must_divide_the_share_of_a_device():
    with pytest.raises(
        RunnerError,
        match="10 cannot be divided among 2 devices in 4 parts; the nearest that can: 8 and 16",
    ):
        choose_devices(10, 2, accumulate=4)
    assert Hardware(devices=2, accumulate=4).execution(16) == (jax.devices()[:2], "jit", 1, 4)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"devices": 0}, "devices must be positive; got 0"),
        ({"model_axis": 0}, "model_axis must be positive; got 0"),
        (
            {"parallel": "pmap", "model_axis": 2},
            "pmap shares the batch among the devices of one process",
        ),
        ({"coordinator": "host:1"}, "a coordinator needs num_processes and process_id"),
        ({"num_processes": 2}, "go with an address as coordinator; got None"),
        ({"coordinator": "auto", "process_id": 0}, "go with an address as coordinator; got auto"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
            "process_id must be less than num_processes, 2; got 2",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**flags)


@pytest.fixture
def nothing_is_kept():
    """As for users who have set nothing; this session keeps its programs."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_unless_the_user_keeps_them_elsewhere(nothing_is_kept, tmp_path):
    with programs_kept_in(tmp_path / "run"):
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "run")
        with programs_kept_in(tmp_path / "other"):
            assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "run")
    assert jax.config.values["jax_compilation_cache_dir"] is None
