"""Tests of a plan's costs, against sums by hand and against the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import paper_unet, pipeline
from distill_jax.config import stage as stage_of
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network, rounded
from distill_jax.run import compilation, costs, devices, plan
from distill_jax.run.calls import calls
from distill_jax.run.devices import Target
from distill_jax.run.flops import flops_of
from distill_jax.run.memory import peak_bytes
from distill_jax.runtime.trees import by_module
from distill_jax.training.loop import Cadence
from distill_jax.training.update import make_update, new_state, optimizer
from distill_jax.typing import Batch
from tests.run.test_plan import GUIDED, TEACHER, config_of, halved
from tests.toys import filled

WIDTH, PIXELS, BATCH = 64, 64, 32


def run_of(*stages, tmp_path, devices=None, **changes):
    config = config_of(*stages, **{"model__width": WIDTH, "batch_size": BATCH, **changes})
    return plan.make(config, tmp_path / "run", devices)


# Multiply-adds per image of the MLP with one block: first the layers on the image, the time or w,
# whose inputs need no gradient, then all other layers.
FIRST = PIXELS * WIDTH + WIDTH**2
LATER = WIDTH**2 + 3 * WIDTH**2 + 2 * 2 * WIDTH**2 + 2 * WIDTH**2 + WIDTH * PIXELS
W_FIRST = W_LATER = WIDTH**2


def test_the_flops_of_updates_are_the_sum_over_the_layers_of_the_mlp(tmp_path):
    run = run_of(TEACHER, GUIDED, halved(4), halved(2), tmp_path=tmp_path)
    got = {name: cost.flops for name, cost in costs.measure(run).items()}
    teacher, student = FIRST + LATER, FIRST + LATER + W_FIRST + W_LATER
    # The backward pass has a product for the weights' gradient, and one for the input's.
    teacher_update = 3 * teacher - FIRST
    student_update = 3 * student - FIRST - W_FIRST
    assert got["s00_teacher"] == (2 * BATCH * teacher_update,)
    # The teacher has two calls: with and without the label, or at the start and middle of a step.
    assert got["s01_guided"] == (2 * BATCH * (student_update + 2 * teacher),)
    assert got["s02_half"] == (2 * BATCH * (student_update + 2 * student),)


# Parameters and forward GFLOP per image of the released networks, counted on their code.
PUBLISHED = {
    "cifar10": ((32, 32, 3), 0, 60_004_099, 34.1),
    "imagenet64": ((64, 64, 3), 1000, 295_905_222, 210.7),
    "lsun128": ((128, 128, 3), 0, 139_578_502, 129.9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_networks_of_the_papers_have_the_flops_of_their_code(name):
    shape, num_classes, parameters, gflop = PUBLISHED[name]
    head = "x" if name == "cifar10" else "both"
    spec = {"model": paper_unet(name), "schedule": {"name": "cosine"}, "parameterization": head}
    network_spec = make_network(spec, image_data(shape, num_classes))
    assert sum(by_module(abstract_params(network_spec, ())).values()) == parameters
    # The published figures are XLA's counts, which include elementwise operations.
    assert costs.forward_flops(network_spec, ()) == pytest.approx(gflop * 1e9, rel=0.01)


def test_halvings_share_their_costs_so_that_a_chain_is_planned_in_seconds(tmp_path):
    run = run_of(TEACHER, GUIDED, halved(4), halved(2), tmp_path=tmp_path)
    measured = costs.measure(run)
    assert measured["s02_half"] is measured["s03_half"]
    assert measured["s01_guided"] is not measured["s02_half"]


def test_a_stage_is_planned_and_trained_with_its_own_batch_size(tmp_path):
    run = run_of(TEACHER, {**TEACHER, "batch_size": BATCH // 4}, tmp_path=tmp_path)
    whole, quarter = costs.measure(run).values()
    assert whole.flops[0] == 4 * quarter.flops[0]
    null = 4  # Bytes of the null label.
    assert whole.kept["batch"] - null == 4 * (quarter.kept["batch"] - null)
    assert f"updates of {BATCH // 4} or {BATCH} images" in plan.show(run)
    for stage, size in zip(run.stages, (BATCH, BATCH // 4), strict=True):
        (batch,) = next(calls(run, stage, Cadence(2, 1, 1, 1), 0)).batches
        assert batch.size == size
    with pytest.raises(ValueError, match="batch_size 4 is not divisible by data x fsdp = 8"):
        run_of(TEACHER, {**TEACHER, "batch_size": 4}, tmp_path=tmp_path, devices=8)


@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "dit", "heads": 2, "blocks": 1}])
def test_a_trace_on_many_examples_has_the_costs_of_every_batch(model, tmp_path, monkeypatch):
    run = run_of(TEACHER, GUIDED, tmp_path=tmp_path, model={**model, "width": 16})
    ((_, (marked,)),) = costs.traced(run, run.stages[1])
    monkeypatch.setattr(costs, "EXAMPLES", BATCH)
    ((_, (direct,)),) = costs.traced(run, run.stages[1])
    assert flops_of(marked, BATCH) == flops_of(direct)
    assert peak_bytes(marked, BATCH) == peak_bytes(direct)
    assert peak_bytes(marked, 2 * BATCH) > peak_bytes(direct)


def test_a_plan_compares_a_sample_in_several_sizes_with_two_calls_at_full_size(tmp_path):
    """The layers of a transformer grow with the patches, and its attention with their square."""
    width, sides = 16, (4, 8)
    model = {"name": "dit", "patch": 1, "width": width, "blocks": 1, "heads": 1}
    config = config_of(TEACHER, model=model)
    config.stages.s00_teacher.method.resolutions = sides
    swd = stage_of("swd", "swd", steps=1, learning_rate=1e-4, times=(1.0, 0.5), resolutions=sides)
    config.stages = pipeline(config.stages.s00_teacher.to_dict(), swd)
    run = plan.make(config, tmp_path / "run")
    student = run.stages[1].roles.student
    calls = [costs.forward_flops(student, (), side) for side in sides]
    assert calls[1] == costs.forward_flops(student, ())
    attention = [2 * 2 * side**4 * width for side in sides]  # Of queries and keys, and values.
    per_patch = (calls[1] - attention[1] - (calls[0] - attention[0])) / (8**2 - 4**2)
    fixed = calls[1] - attention[1] - per_patch * 8**2
    assert per_patch == 2 * width * (1 + 4 * width + 2 * 4 * width + 1)
    assert fixed > 0  # The embedding of time and label.
    ratio = sum(calls) / calls[1] / 2
    shown = costs.show(run, costs.measure(run), Target(1, "cpu", None))
    assert f"a sample of s01_swd has calls at 4, 8: {sum(calls) / 1e3:.4g} kFLOP" in shown
    assert f"{ratio:.2f} of two calls at full size" in shown


def test_planning_allocates_no_network(tmp_path):
    before = sum(array.nbytes for array in jax.live_arrays())
    run = run_of(TEACHER, tmp_path=tmp_path, model__width=512)
    costs.show(run, costs.measure(run), devices.target(None))
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1000
    assert not (tmp_path / "run").exists()


def test_the_compiled_update_has_the_flops_and_bytes_of_the_plan(tmp_path):
    run = run_of(TEACHER, tmp_path=tmp_path, model__width=256, batch_size=256)
    stage, cost = run.stages[0], costs.measure(run)["s00_teacher"]
    compiled = compilation.compile_update(run, stage, 0)
    # XLA also counts elementwise operations.
    assert cost.flops[0] == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
    memory = compiled.memory_analysis()
    # The arguments also have a few numbers of the method and its rates.
    assert 0 <= memory.argument_size_in_bytes - sum(cost.kept.values()) < 100
    assert memory.temp_size_in_bytes > cost.kept["parameters"]  # They include the gradients.
    assert cost.step["gradients"] == cost.kept["parameters"] and cost.step["gathered"] == 0
    # This is an estimate: XLA recomputes activations of the MLP that the trace keeps.
    assert 0.7 < sum(cost.step.values()) / memory.temp_size_in_bytes < 1.7

    # It is the program of the run, so it accepts the run's arguments.
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), stage.shapes)
    state = new_state(jax.random.key(0), params, optimizer(**run.config.optimizer))
    source = next(run.dataset.batches(0, 0, 256))
    rows = run.layout.shard_batch((source.index, normalise(source.x), dict(source.cond)))
    batch = Batch(*rows, run.layout.replicate(dict(run.dataset.null)))
    state, _ = compiled(stage.method, stage.rates, jax.device_put(state), {}, batch)
    assert int(state.step) == 1


def test_stages_of_one_program_are_compiled_once_and_shown_in_one_row(tmp_path):
    sizes = {"model__width": 256, "batch_size": 256}
    run = run_of(TEACHER, {**TEACHER, "steps": 9}, tmp_path=tmp_path, **sizes)
    measured = costs.measure(run)
    titles, _, *rows = compilation.show(run, measured).splitlines()
    assert "activations" in titles
    assert len(rows) == 1
    assert "s00_teacher to s01_teacher (2)" in rows[0]
    assert costs.scaled(measured["s00_teacher"].flops[0], costs.FLOP) in rows[0]


def test_each_device_keeps_its_shard_of_a_network(tmp_path):
    run = run_of(TEACHER, GUIDED, tmp_path=tmp_path, devices=8, mesh__fsdp=4)
    kept = costs.measure(run)["s01_guided"].kept

    def bytes_of(tree):
        # All matrices of the MLP have an axis divisible by 4; its labels are 11 rows of 64.
        sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
        return sum(4 * size // (4 if size >= run.layout.min_size else 1) for size in sizes)

    shapes = run.stages[1].shapes
    assert kept["parameters"] == kept["EMA"] == bytes_of(shapes["student"])
    assert kept["parameters"] < sum(leaf.size for leaf in jax.tree.leaves(shapes["student"])) * 2
    assert kept["frozen"] == bytes_of(shapes["teacher"])
    assert kept["optimizer"] == 2 * kept["parameters"] + 4  # Two moments of Adam, one counter.
    assert kept["batch"] == BATCH // 8 * (4 * PIXELS + 4) + 4  # The null label is replicated.


def test_a_frozen_teacher_in_bfloat16_takes_half_the_bytes_and_trains_alike(tmp_path):
    runs = [
        run_of(TEACHER, GUIDED, tmp_path=tmp_path, frozen_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]
    single, half = (costs.measure(run)["s01_guided"].kept["frozen"] for run in runs)
    # Vectors stay float32.
    assert 0.5 < half / single < 0.53

    stage, layout = runs[0].stages[1], runs[0].layout
    params = filled(stage.shapes)
    x = np.random.default_rng(0).standard_normal((BATCH, 8, 8, 1), np.float32)
    label = {"label": np.arange(BATCH, dtype=np.int32) % 10}
    ends = []
    for run, dtype in zip(runs, ("float32", "bfloat16"), strict=True):
        update = make_update(stage.method.phases, 0, stage.roles, stage.tx, layout)
        frozen = {"teacher": rounded(params["teacher"], dtype)}
        assert jax.tree.map(jnp.shape, frozen["teacher"]) == jax.tree.map(
            jnp.shape, run.stages[1].shapes["teacher"]
        )
        kinds = [leaf.dtype for leaf in jax.tree.leaves(frozen["teacher"])]
        assert kinds == [leaf.dtype for leaf in jax.tree.leaves(run.stages[1].shapes["teacher"])]
        state = new_state(jax.random.key(0), {"student": params["student"]}, stage.tx)
        batch = Batch(np.arange(BATCH), x, label, {"label": np.full(1, 10, np.int32)})
        ends.append(update(stage.method, stage.rates, state, frozen, batch)[1]["loss"])
    # The target of the loss has the rounding of 8 bits.
    assert 0 < abs(ends[1] / ends[0] - 1) < 0.02
    assert ends[1].dtype == jnp.float32


def test_a_plan_lists_the_replicated_arrays_of_a_sharded_network(tmp_path):
    run = run_of(TEACHER, tmp_path=tmp_path, devices=8, mesh__fsdp=4)
    text = costs.show(run, costs.measure(run), devices.target("8xh100"))
    sizes = run.layout.replicated_bytes(run.stages[0].shapes["student"])
    assert f"{len(sizes)} of " in text
    # 10 labels and the null label, 64 numbers for each.
    assert "conditioning/label_embed/embedding 2.75 KiB" in text
    alone = run_of(TEACHER, tmp_path=tmp_path)
    assert "whole on each" not in costs.show(alone, costs.measure(alone), devices.target("1xh100"))


def test_hours_are_flops_over_the_flops_per_hour_of_all_devices():
    # 8 devices that reach 2.5 of 10 TFLOP/s compute 20e12 * 3600 FLOP in an hour.
    assert devices.hours(20e12 * 3600 * 7, Target(8, "a", 10.0, 0.25)) == pytest.approx(7)


TARGETS = {
    "8xh100": Target(8, "h100", 989, 0.4),
    "64xv4@0.5": Target(64, "v4", 275, 0.5),
    "4x2250": Target(4, "devices", 2250, 0.4),
    "1x0.5@1": Target(1, "devices", 0.5, 1),
}


@pytest.mark.parametrize("text", TARGETS)
def test_devices_are_named_by_their_number_and_kind_or_peak(text):
    assert devices.target(text) == TARGETS[text]


@pytest.mark.parametrize(
    "text", ["8", "h100", "8xh10", "0xh100", "8x0", "8xh100@0", "8xh100@2", "8xh100@", "8xh100@.."]
)
def test_devices_of_another_form_are_refused_with_a_valid_example(text):
    with pytest.raises(ValueError, match=f"--plan_for is '{text}'; expected .* such as 8xh100"):
        devices.target(text)


def test_a_misspelt_device_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        devices.target("8xh10")


def test_without_a_name_the_plan_is_for_the_devices_here():
    assert devices.target(None) == Target(jax.device_count(), jax.devices()[0].device_kind, None)


def test_the_plan_shows_hours_for_a_known_peak_and_else_how_to_get_them(tmp_path):
    run = run_of({**TEACHER, "steps": 10_000_000}, tmp_path=tmp_path)
    measured = costs.measure(run)
    measured = {"s00_teacher": measured["s00_teacher"]._replace(flops=(2_000_000_000,))}
    assert "--plan_for=8xh100" in costs.show(run, measured, devices.target(None))
    text = costs.show(run, measured, Target(1, "devices", 10.0, 0.4))
    # 1e7 updates of 2e9 FLOP at 4e12 a second.
    row = ["s00_teacher", "320,000,000", "2 GFLOP", "20 PFLOP", "1.39"]
    assert row in [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert "on 1 devices at 40% of 10 TFLOP/s each" in text


def test_modules_are_grouped_by_prefix_and_size_and_small_ones_are_merged():
    def dense(*shape):
        return {"kernel": jax.ShapeDtypeStruct(shape, np.float32)}

    params = {
        "down_0.block_0": dense(10, 10),
        "down_0.attn_0": dense(10, 20),
        **{f"block_{i}": dense(5, 5) for i in range(12)},
        "conv_in": dense(2),
        "conv_out": dense(3),
    }
    assert by_module(params, most=3) == {
        "down_0": 300,
        "block_0 to block_11 (12)": 300,
        "2 others": 5,
    }
    assert list(by_module(params)) == [
        "down_0",
        "block_0 to block_11 (12)",
        "conv_out",
        "conv_in",
    ]


def test_numbers_are_shown_in_the_unit_that_suits():
    assert costs.scaled(210_700_000_000, costs.FLOP) == "210.7 GFLOP"
    assert costs.scaled(0, costs.BYTES) == "0 B"
    assert costs.scaled(3 * 2**29, costs.BYTES) == "1.5 GiB"


def test_programs_for_absent_devices_are_not_compiled(tmp_path):
    compilation.check(run_of(TEACHER, tmp_path=tmp_path))
    with pytest.raises(ValueError, match="1 device.* here, and 8 .* JAX_NUM_CPU_DEVICES=8"):
        compilation.check(run_of(TEACHER, tmp_path=tmp_path, devices=8))
