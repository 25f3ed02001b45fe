"""What compiled programs launch, and compiling for devices that are not here."""

import dataclasses
import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny_run

from emcaps import PAPER, conv_em_routing
from experiments import aot
from experiments.compiled.ahead_of_time import compile_for, described_devices
from experiments.compiled.hlo import count_launches, parse_program
from experiments.data.batches import Batch
from experiments.devices.parallel import Execution, parallelize
from experiments.learning.network import make_model
from experiments.learning.step import make_train_step
from experiments.measurements.textbook import TextbookNetwork
from experiments.runtime.errors import RunnerError

PROGRAM = """HloModule example

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} sine(%p)
}

%inner (i: (s32[], f32[8])) -> (s32[], f32[8]) {
  %i = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%i), index=1
  %a = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused
  %b = f32[8]{0} copy(%a)
  ROOT %t = (s32[], /*index=1*/f32[8]{0}) tuple(%v, %b)
}

%outer (o: (s32[], f32[8])) -> (s32[], f32[8]) {
  %o = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%o), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

%short (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%long (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %z = (f32[8]{0}, s8[64]{0}) custom-call(%p), custom_call_target="__cublas$gemm"
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %t = (s32[], f32[8]{0}) tuple(%x, %x)
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[8]{0} get-tuple-element(%w), index=1
  %r = f32[8]{0} all-reduce-start(%y), replica_groups={{0,1}}, to_apply=%add
  %d = f32[8]{0} all-reduce-done(%r)
  %q = f32[8]{0} conditional(%p, %d, %d), branch_computations={%short, %long}
  ROOT %k = f32[8]{0} call(%q), to_apply=%long
}
"""


def test_launches_of_loops_count_as_often_as_they_run():
    inner = 2
    outer = 1 + 5 * inner
    assert count_launches(PROGRAM) == (1 + 3 * outer) + 1 + (1 + 1) + 1


def test_a_loop_without_a_known_end_is_not_counted():
    with pytest.raises(ValueError, match="nobody knows how often the loop inner runs"):
        count_launches(PROGRAM.replace('"known_trip_count":{"n":"5"}', ""))


TPU_LOOP = """
%body (i: (s32[], f32[8])) -> (s32[], f32[8]) {
  %i = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %v = f32[8]{0:T(128)S(1)} get-tuple-element(%i), index=1
  %a = f32[8]{0:T(128)S(1)} sine(%v)
  ROOT %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%v, %a)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %c = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%k, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {
  %x = f32[8]{0} parameter(0)
  %first = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%first)
  %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%copied, %x)
  ROOT %w = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%t), condition=%condition, body=%body
}
"""


def test_of_a_loop_without_a_number_the_trips_are_read_from_its_condition():
    assert count_launches(TPU_LOOP) == 1 + 1 + (7 - 2)
    with pytest.raises(ValueError, match="nobody knows how often the loop body runs"):
        count_launches(TPU_LOOP.replace("direction=LT", "direction=NE"))


def looped(x, trips):
    return jax.lax.fori_loop(0, trips, lambda _, x: jnp.sin(x @ x), x).sum()


def test_each_trip_of_a_compiled_loop_costs_the_same():
    def launches(trips):
        return count_launches(
            jax.jit(looped, static_argnums=1).lower(jnp.ones((64, 64)), trips).compile().as_text()
        )

    of_fifty = launches(150) - launches(100)
    assert of_fifty == launches(100) - launches(50) and of_fifty >= 50 * 2


def test_without_a_compiler_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    def missing(*_, **__):
        raise NotImplementedError("topology not implemented")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    for accelerator, extra in (("h100", "cuda13-local"), ("v5p", "tpu")):
        assert aot.main(["--accelerators", accelerator, "--output", str(tmp_path / "new")]) == 1
        said = capsys.readouterr().err
        assert f"no compiler for {accelerator} here (topology not implemented)" in said
        assert f'pip install "jax[{extra}]=={jax.__version__}"' in said
    assert not (tmp_path / "new").exists()


def test_parent_types_are_divided_where_there_are_chips_and_emcaps_to_do_it():
    command = aot.AotCommand(("h100", "v6e"), (1, 8), networks=("4/2/2/2",), divided=("8/8/8/8",))
    cases = [(case.accelerator, case.chips, case.divided, case.routing) for case in command.cases()]
    together = [
        (chips, False, routing)
        for chips in (1, 8)
        for routing in ("kernels", "streamed", "dense", "textbook")
    ]
    divided = [(8, True, routing) for routing in ("kernels", "streamed", "dense")]
    everywhere = [one for one in together + divided if one[-1] != "kernels"]
    assert cases == [("h100", *one) for one in together + divided] + [
        ("v6e", *one) for one in everywhere
    ]


def test_the_table_has_what_was_counted_and_what_failed():
    case = aot.Case("h100", 8, (4, 2, 2, 2), False, "dense", 64, 3)._asdict()
    sent = {"all-reduce": {"operations": 1, "runs": 1, "megabytes_sent": 1.3}}
    counted = {
        "launches": 8557,
        "scratch_bytes": 226_000_000,
        "total_bytes": 3e8,
        "collectives": sent,
        "compile_seconds": 12.3,
    }
    rows = aot.table([case | counted, case | {"error": "out of memory"}]).rows
    assert rows[0] == (
        "8 x h100",
        "4/2/2/2",
        "dense",
        "8,557",
        "226",
        "300",
        "1 all-reduce",
        "1.30",
        "12",
    )
    assert rows[1][:4] == ("8 x h100", "4/2/2/2", "dense", "out of memory")


@pytest.mark.slow
def test_the_textbooks_step_is_the_runners(optimized):
    """One step from the same parameters, on two devices of the CPU: the same loss, gradient and
    parameters.
    """
    config = dataclasses.replace(
        tiny_run.CONFIG, model=dataclasses.replace(tiny_run.MODEL, routing=PAPER)
    )
    model = make_model(config.model, 3)
    batch = Batch(
        jax.random.uniform(jax.random.key(1), (8, *tiny_run.IMAGE_SHAPE)), jnp.arange(8) % 3
    )
    stepped = []
    for network in (model, TextbookNetwork(model)):
        step = parallelize(make_train_step(config, network), Execution(jax.devices()[:2]))
        stepped.append(step.step(step.replicate(tiny_run.initial_state()), step.shard(batch))[1])
    chex.assert_trees_all_close(*stepped, rtol=1e-3)


@pytest.fixture
def h100():
    try:
        return described_devices("h100", 2)
    except RunnerError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_small_step_is_compiled_for_h100s_and_written_down(h100, tmp_path):
    """As a user would, who has not kept JAX from looking for a GPU."""
    flags = (
        "--chips 2 --networks 4/2/2/2 --divided 2/2/2/2 --routings streamed --examples 2 "
        "--iterations 1"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "experiments.aot", *flags.split(), "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    together, divided = json.loads((tmp_path / "aot.json").read_text())["cases"]
    assert (
        list(together["collectives"]) == ["all-reduce"]
        and together["collectives"]["all-reduce"]["runs"] == 1
    )
    assert divided["divided"] and divided["collectives"]["all-gather"]["runs"] > 0
    for row in (together, divided):
        assert row["launches"] > 100 and 0 < row["scratch_bytes"] < row["total_bytes"]
    assert "| 2 x h100 | 4/2/2/2 | streamed |" in ended.stdout


@pytest.mark.slow
def test_an_h100_runs_a_product_and_what_follows_it_in_one_kernel(h100, optimized):
    assert len(h100) == 2 and h100[0].device_kind == "NVIDIA H100 80GB HBM3"
    compiled = compile_for(h100[0], lambda x: jnp.sin(x @ x) + 1, jnp.ones((64, 64)))
    entry, computations = parse_program(compiled.as_text())
    assert [instruction.opcode for instruction in computations[entry].values()] == [
        "parameter",
        "fusion",
    ]
    assert count_launches(compiled.as_text()) == 1
    assert compiled.memory_analysis().argument_size_in_bytes == 4 * 64 * 64


@pytest.mark.slow
@pytest.mark.parametrize("types", [32, 64])
def test_an_h100_does_not_store_the_votes(h100, types):
    """Nor does it copy together what three iterations leave: assignments and scores are a sixteenth
    of the votes, and six arrays of them are needed at once.

    Of many children, here 576, it would store them in a single reduction.
    """
    poses = jnp.ones((64, 14, 14, types, 4, 4))
    transforms = jnp.ones((3, 3, types, 32, 4, 4))
    beta = jnp.zeros(32)

    def total(poses, transforms):
        return conv_em_routing(
            poses,
            jnp.ones(poses.shape[:-2]),
            transforms,
            beta,
            beta,
            stride=2,
            num_iterations=3,
        ).poses.sum()

    compiled = compile_for(h100[0], jax.grad(total, argnums=(0, 1)), poses, transforms)
    votes = 4 * 64 * (6 * 6) * (3 * 3 * types) * 32 * 16
    assert compiled.memory_analysis().temp_size_in_bytes < 10 / 16 * votes
