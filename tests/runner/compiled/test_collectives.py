"""What devices tell each other: counted in programs whose collectives are known, and in the
compiled training step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax.sharding import Mesh, PartitionSpec

from experiments.compiled.collectives import Collective, collectives, compiled_step, totals
from experiments.devices.parallel import Execution


def compiled(function, *arguments):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_collectives_in_loops_count_as_often_as_they_run():
    def function(x):
        summed = jax.lax.fori_loop(0, 7, lambda _, total: jax.lax.psum(jnp.sin(total), "data"), x)
        return summed.sum() + jax.lax.all_gather(x * 2, "data", tiled=True).sum()

    found = collectives(compiled(function, jnp.ones(10)))
    assert sorted(found) == [Collective("all-gather", 2, 40, 1), Collective("all-reduce", 2, 20, 7)]
    assert totals(found)["all-reduce"] == {
        "operations": 1,
        "runs": 7,
        "megabytes_sent": pytest.approx(7 * 20 / 1e6),
    }


def test_a_permutation_is_counted_by_its_pairs():
    def function(x):
        return jax.lax.psum(jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]) * x, "data")

    found = collectives(compiled(function, jnp.ones(10)))
    assert sorted(found) == [
        Collective("all-reduce", 2, 20, 1),
        Collective("collective-permute", 2, 20, 1),
    ]
    program = """ENTRY %main (x: f32[3]) -> f32[3] {
  %begun = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,2}}
  %y = f32[3]{0} collective-permute-done(%begun)
}"""
    assert collectives(program) == [Collective("collective-permute", 3, 12, 1)]


@pytest.mark.parametrize(
    "groups, size",
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['data'=4,'model'=2] {'data'}", 4),
        ("mesh['data'=4,'model'=2] {'data','model'}", 8),
    ],
)
def test_who_takes_part_is_read_as_each_version_of_xla_writes_it(groups, size):
    program = (
        "ENTRY %main (x: f32[3]) -> f32[3] {{\n  %y = f32[3]{{0}} all-reduce(%x), "
        "replica_groups={}, to_apply=%add\n}}"
    )
    assert collectives(program.format(groups)) == [Collective("all-reduce", size, 12, 1)]
    with pytest.raises(ValueError, match="written in a way that nobody here knows"):
        collectives(program.format("somehow"))


def test_of_what_is_started_and_waited_for_the_result_counts():
    program = """ENTRY %main (x: f32[2,3]) -> f32[8,3] {
  %many = ((f32[2,3]{1,0}, f32[2]{0}), (f32[8,3]{0,1}, f32[8]{0:T(128)})) all-gather-start(%x, %y), replica_groups={{0,1,2,3}}
  %done = (f32[8,3]{0,1}, f32[8]{0}) all-gather-done(%many)
  %one = (f32[8,3]{1,0}, f32[2,3]{0,1}) reduce-scatter-start(%z), replica_groups={{0,1,2,3}}, to_apply=%add
  %all = ((f32[8,3]{1,0}), f32[8,3]{1,0}) all-reduce-start(%z), replica_groups={{0,1,2,3}}, to_apply=%add
  %this = f32[8,3]{1,0} all-reduce-done(%all)
  %that = f32[2,3]{0,1} reduce-scatter-done(%one)
}"""
    found = [
        Collective("all-gather", 4, 4 * 32, 1),
        Collective("reduce-scatter", 4, 4 * 24, 1),
        Collective("all-reduce", 4, 96, 1),
    ]
    assert collectives(program) == found


def test_a_ring_sends_what_it_must():
    assert Collective("all-reduce", 4, 100, 1).sent == 150
    assert Collective("reduce-scatter", 4, 100, 1).sent == 75
    assert Collective("collective-permute", 4, 100, 1).sent == 100


def test_the_step_has_one_all_reduce_of_gradient_and_metrics_and_nothing_else():
    program = compiled_step(tiny_run.CONFIG, Execution(jax.devices()[:2]), tiny_run.IMAGE_SHAPE, 3)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tiny_run.initial_state().params)) + 2
    assert collectives(program.as_text()) == [Collective("all-reduce", 2, 4 * numbers, 1)]


@pytest.mark.slow
def test_with_parent_types_divided_the_gradient_of_each_is_reduced_once_more():
    config = dataclasses.replace(
        tiny_run.CONFIG, model=dataclasses.replace(tiny_run.MODEL, conv_capsules=(4,))
    )
    program = compiled_step(config, Execution(jax.devices()[:2], "jit", 2), tiny_run.IMAGE_SHAPE, 3)
    found = totals(collectives(program.as_text()))
    assert found["all-gather"]["runs"] >= 2 and found["reduce-scatter"]["runs"] == 2
