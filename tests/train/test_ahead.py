import jax
import jax.numpy as jnp
import pytest

from dinov3_jax.aot import describe
from dinov3_jax.costs import flops
from dinov3_jax.costs.collectives import sent
from dinov3_jax.train import ahead, sharding
from dinov3_jax.train.family import members

CPU = flops.Chip(1e12, 2**30)


@pytest.fixture
def taught_by(distill_config):
  """The settings of a wider teacher, with as many prototypes."""
  config = distill_config.copy_and_resolve_references()
  config.distill.teacher = ""
  config.model.update(width=24, num_heads=3)
  return config


@pytest.fixture
def config(family_config):
  family_config.update_from_flattened_dict({
    "mesh.data": 1, "mesh.fsdp": 2, "train.batch_size": 8, "train.remat": "none",
    "model.depth": 5})
  return family_config


def test_a_family_has_a_program_for_the_teacher_and_one_for_each_student(config, taught_by):
  mesh = sharding.make_mesh(config, jax.devices()[:2])
  parts = ahead.parts(config, mesh, taught_by=taught_by)
  assert [part.name for part in parts] == ["teacher", "a", "b"]
  together = flops.flops_by_crops(list(members(config).values()), 2, taught_by)
  assert sum(part.flops.executed for part in parts) == together[32, 16, 0].executed
  for part in parts[1:]:
    assert set(part.kept.student) == {"backbone", "dino_head", "ibot_head"}


def test_without_distillation_a_step_is_one_program(taught_by):
  mesh = sharding.make_mesh(taught_by, jax.devices()[:1])
  (part,) = ahead.parts(taught_by, mesh)
  assert part.name == "" and part.least == {}


def test_what_others_hold_counts_beside_a_program(config, taught_by, monkeypatch):
  monkeypatch.setitem(ahead.CHIPS, jax.devices()[0].device_kind, CPU)
  devices = jax.devices()[:2]
  parts = ahead.parts(config, sharding.make_mesh(config, devices), taught_by=taught_by)
  ((_, report),) = ahead.compile_parts(config, devices, 0, taught_by, only="b")
  held = {part.name: sharding.bytes_held(part.kept) for part in parts}
  prototypes = sharding.bytes_held(parts[0].shared)
  assert report.part == "b" and report.beside == held["teacher"] + held["a"] - prototypes
  assert report.peak == report.beside + report.arguments + report.temporaries
  assert report.arguments > held["b"] + prototypes and report.devices == 2
  # Forward a block's first matrix once more than there are blocks, backward its last one.
  blocks = parts[2].kept.student["backbone"]["blocks"]
  ahead_of_use = [blocks["attn"]["qkv"]["kernel"], blocks["mlp"]["fc2"]["kernel"]]
  itemsize = jnp.dtype(config.train.dtype).itemsize
  more = sum(sent("all-gather", itemsize * x.size / len(x) / 2, 2) for x in ahead_of_use)
  assert report.sent["all-gather"] == report.least["all-gather"] + more
  assert report.flops_executed == parts[2].flops.executed / 2
  assert report.computing == 0 and report.exposed == {}  # nothing is known of these devices' links


@pytest.mark.parametrize("changes, teacher, only, message", [
  ({}, False, None, "add the recipe with which that was trained, such as --teacher=configs/"),
  ({"distill.teacher": "", "students": {}}, True, None, "this one has no distill.teacher"),
  ({"dino.prototypes": 16}, True, None, "the teacher's dino head has 32 prototypes, that of a 16"),
  ({}, True, "c", "there is no part 'c': take one of teacher, a, b"),
])
def test_what_does_not_go_together_is_one_line(config, taught_by, monkeypatch, changes, teacher,
                                               only, message):
  monkeypatch.setitem(ahead.CHIPS, jax.devices()[0].device_kind, CPU)
  with config.unlocked():
    for key, value in changes.items():
      section, _, name = key.rpartition(".")
      (config[section] if section else config)[name] = value
  with pytest.raises(ValueError, match=message) as error:
    list(ahead.compile_parts(config, jax.devices()[:2], 0, taught_by if teacher else None, only))
  assert "\n" not in str(error.value)


def test_a_device_without_figures_is_one_line(config):
  with pytest.raises(ValueError, match="no figures of cpu are known: add them to CHIPS"):
    next(ahead.compile_parts(config, jax.devices()[:2]))


def report(**changes):
  values = dict(
    part="", chips=4, devices=4, device_kind="TPU v6 lite", mesh=dict(data=1, fsdp=4, tensor=1),
    crops=(224, 96, 0), batch_size=128, beside=0, arguments=2**30, temporaries=2**30, peak=2**31,
    memory=2**35, flops_full=2e12, flops_executed=1e12, seconds_at_peak=0.001, sent={}, least={},
    computing=2.0, sending={"all-gather": 1.0, "all-reduce": 0.5},
    exposed={"all-gather": 0.25, "all-reduce": 0.5}, compile_seconds=1.0)
  return ahead.Report(**values | changes)


def test_a_steps_time_with_and_without_overlap():
  assert (report().seconds_in_turn, report().seconds_overlapped) == (3.5, 2.75)
  assert report().gathers_exposed == 0.25
  assert report(sending={}, exposed={}).gathers_exposed == 0


def test_the_command_tells_of_a_steps_time_where_it_is_known():
  said = describe(report())
  assert "at least 2.750 s by its schedule, 3.500 s if nothing overlapped; 25% of the" in said
  assert "by its schedule" not in describe(report(computing=0.0, sending={}, exposed={}))
