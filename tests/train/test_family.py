import json
import os
import pathlib
import shutil
import signal

import chex
import jax
import jax.extend
import numpy as np
import pytest

import dinov3_jax
from configs import base
from dinov3_jax.train import checkpoint, loop
from dinov3_jax.train.family import Stored, meet, members
from dinov3_jax.weights import native
from tests.distilled import tiny_family, write_run

pytestmark = pytest.mark.usefixtures("one_device")


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  return [(line["step"], line["loss"], line["ibot_loss"]) for line in lines(workdir)]


def saved(workdir):
  return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(one_device, quick_images, teacher_run, tmp_path_factory):
  """The folder of a family that nothing has disturbed, and its last states."""
  folder = tmp_path_factory.mktemp("undisturbed")
  return folder, loop.train(tiny_family(quick_images, teacher_run), folder)


def test_a_family_of_two_is_two_runs_of_one_bit_for_bit(family_config, undisturbed, tmp_path):
  folder, states = undisturbed
  for name, config in members(family_config).items():
    alone = loop.train(config, tmp_path / name)
    chex.assert_trees_all_equal(states[name], alone)
    assert losses(folder / name) == losses(tmp_path / name) and len(losses(folder / name)) == 4
    assert saved(folder / name) == [1, 2, 3, 4]
    width = {"a": 16, "b": 8}[name]
    model = dinov3_jax.load(None, folder / name)
    assert model(np.zeros((1, 16, 16, 3), np.float32))["cls"].shape == (1, width)
    np.testing.assert_array_equal(model.cls_token[...], alone.teacher["backbone"]["cls_token"])


def products(jaxpr, shape):
  """How many matrix products have an operand of this shape, loops unrolled."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      count += any(x.aval.shape == shape for x in eqn.invars)
    inner = sum(products(x, shape) for x in jax.extend.core.jaxprs_in_params(eqn.params))
    count += inner * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
  return count


def test_the_teachers_forward_appears_once_in_what_a_step_executes(family_config, tmp_path):
  run = loop.prepare(family_config, tmp_path)
  batch, _ = run.first
  called = []
  targets = run.targets
  run.targets = lambda params, batch: called.append(1) or targets(params, batch)
  full = run.with_targets(batch)
  run.pipeline.close()
  assert called == [1]
  shape = run.teacher.params["backbone"]["blocks"]["mlp"]["fc1"]["kernel"].shape[1:]
  executed = [jax.make_jaxpr(targets)(run.teacher.params, batch)]
  executed += [jax.make_jaxpr(each.train_step)(each.abstract_state, full) for each in run.runs]
  assert [products(program.jaxpr, shape) for program in executed] == [1, 0, 0]


@pytest.mark.parametrize("step, student", [(2, "a"), (2, "b"), (4, "b")])
def test_a_signal_saves_all_and_the_next_start_goes_on_bit_for_bit(
    family_config, undisturbed, tmp_path, monkeypatch, step, student):
  family_config.checkpoint.every = 100
  make_watching = loop.make_watching

  def interrupting(run):
    watching, past = make_watching(run)
    observe = watching.observe

    def act(at, state):
      observe(at, state)
      if at == step and run.workdir.name == student:
        os.kill(os.getpid(), signal.SIGTERM)

    watching.observe = act
    return watching, past

  with monkeypatch.context() as patch:
    patch.setattr(loop, "make_watching", interrupting)
    run = loop.prepare(family_config, tmp_path)
    states = loop.run(run)
  assert {int(state.step) for state in states.values()} == {step}
  assert saved(tmp_path / "a") == saved(tmp_path / "b") == [step]
  assert run.stopped == (signal.SIGTERM if step < 4 else 0)
  if step < 4:
    states = loop.train(family_config, tmp_path)
  chex.assert_trees_all_equal(states, undisturbed[1])
  for name in "ab":
    assert losses(tmp_path / name) == losses(undisturbed[0] / name)


@pytest.mark.parametrize("harm", ["killed before one was written", "an array is damaged"])
def test_after_a_kill_all_go_on_from_where_they_were_together(family_config, undisturbed, tmp_path,
                                                              harm, caplog, monkeypatch):
  """As if the process had died after step 3, when but one student's checkpoint was on disk."""
  folder, workdir = undisturbed[0], tmp_path / "killed"
  shutil.copytree(folder, workdir)
  for name in "ab":
    shutil.rmtree(workdir / name / "checkpoints" / "4")
  if harm == "killed before one was written":
    shutil.rmtree(workdir / "b" / "checkpoints" / "3")
  else:
    # Folders of checkpoints are absolute, whatever the way to the run.
    monkeypatch.chdir(tmp_path)
    workdir = pathlib.Path("killed")
    for path in (workdir / "b" / "checkpoints" / "3" / "state").rglob("*"):
      if path.is_file() and path.stat().st_size > 2000:
        path.write_bytes(bytes(path.stat().st_size))
  chex.assert_trees_all_equal(loop.train(family_config, workdir), undisturbed[1])
  assert saved(workdir / "a") == saved(workdir / "b") == [1, 2, 3, 4]
  assert (workdir / "a" / "checkpoints" / "3.ahead").exists() and "3.ahead" in caplog.text
  damaged = (workdir / "b" / "checkpoints" / "3.damaged").exists()
  assert damaged == (harm == "an array is damaged")
  for name in "ab":
    assert losses(workdir / name) == losses(folder / name)


def test_a_student_joins_and_another_leaves_between_starts(family_config, distill_config, tmp_path):
  alone = family_config.copy_and_resolve_references()
  with alone.unlocked():
    del alone.students["b"]
  # Steps that no schedule sees, so that all of this has one program for each student.
  run = loop.prepare(alone, tmp_path)
  for each in run.runs:
    each.config.train.steps = 2
  loop.run(run)
  both = loop.train(family_config, tmp_path)
  # The one is done after two more steps, the other has four of its own, on the images that follow.
  assert {name: int(state.step) for name, state in both.items()} == {"a": 4, "b": 4}
  assert [line["step"] for line in lines(tmp_path / "b")] == [1, 2, 3, 4]
  at = lambda name: native.stored_position(native.latest(tmp_path / name))["step"]
  assert (at("a"), at("b")) == (4, 6)
  again = loop.train(family_config, tmp_path)  # there is nothing left to do
  chex.assert_trees_all_equal(again, both)
  assert [line["step"] for line in lines(tmp_path / "b")] == [1, 2, 3, 4]
  assert not list(tmp_path.glob("*/checkpoints/*.ahead"))
  # One that has left goes on alone, with the settings of a run of one.
  distill_config.train.steps = 5
  assert int(loop.train(distill_config, tmp_path / "a").step) == 5


def stored(batches, students, step=None):
  return Stored(pathlib.Path(str(step or batches)), batches, frozenset(students))


def test_where_students_meet():
  a = [stored(n, "ab") for n in (2, 4, 6)]
  b = [stored(n, "ab") for n in (2, 4)]
  chosen = lambda **members: {name: entry and entry.batches
                              for name, entry in meet(members).items()}
  assert chosen(a=[], b=[]) == {"a": None, "b": None}
  assert chosen(a=a, b=b) == {"a": 4, "b": 4}
  assert chosen(a=a, b=[]) == {"a": None, "b": None}  # b was there, and nothing of it is left
  assert chosen(a=a) == {"a": 6}  # b has left
  assert chosen(a=a, c=[]) == {"a": 6, "c": None}
  left = [stored(n, "b") for n in (8, 10)]  # b went on alone
  assert chosen(a=a, b=[*b, stored(6, "ab"), *left]) == {"a": 6, "b": 10}
  others = [stored(n, "ab") for n in (8, 10)]  # as if a, which is done, were still there
  newest = meet(dict(a=a, b=[*b, stored(6, "ab"), *others]), done={"a"})
  assert {name: entry.batches for name, entry in newest.items()} == {"a": 6, "b": 10}
  back = [stored(n, "ac") for n in (20, 22)]  # b comes back to others that went on
  assert chosen(a=back, b=b, c=back[:1]) == {"a": 20, "b": 4, "c": 20}


def test_a_student_that_no_longer_learns_leaves_the_others_saved(family_config, tmp_path):
  """Its rate is absurd, so that it is soon no longer finite."""
  family_config.train.max_skipped_steps = 0
  family_config.checkpoint.every = 100
  with family_config.unlocked():
    family_config.students.b.schedules.lr = base.constant(float("3e38"))
  with pytest.raises(FloatingPointError, match="not finite"):
    loop.train(family_config, tmp_path)
  (step,) = saved(tmp_path / "a")
  assert 1 < step <= 4 and not saved(tmp_path / "b")


def refused(config, workdir):
  with pytest.raises((ValueError, OSError)) as error:
    loop.prepare(config, workdir)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("own, message", [
  (dict(dino=dict(prototypes=16)), "the teacher's dino head has 32 prototypes, that of c 16"),
  (dict(crops=dict(locals=1)), "students.c.crops is the same for all students: set crops alone"),
  (dict(model=dict(widht=3)), "students.c: "),
  (dict(optim=dict(clip=-1.0)), "students.c: optim.clip must be above 0"),
  (dict(model=dict(patch_size=16)), "a has patches of 8 pixels and c of 16, and the teacher sees"),
  (dict(model=base.convnext((1, 1, 1, 1), (4, 8, 8, 8)).to_dict()),
   "a has patches of 8 pixels and c of 32"),
  (dict(model=base.convnext((1, 1, 1, 0), (4, 8, 8, 8)).to_dict()),
   "students.c: a ConvNeXt has four stages"),
])
def test_bad_students_are_refused(family_config, tmp_path, own, message):
  with family_config.unlocked():
    family_config.students.c = own
  assert message in refused(family_config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_bad_names_are_refused(family_config, tmp_path):
  for name in ("checkpoints", "a/b", "-a"):
    config = family_config.copy_and_resolve_references()
    with config.unlocked():
      config.students = {name: {}}
    assert "the name is that of a folder" in refused(config, tmp_path)


def test_another_teacher_than_the_checkpoints_is_refused(family_config, teacher_run, tmp_path):
  teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
  family_config.distill.teacher = str(teacher)
  loop.train(family_config, tmp_path / "run")
  copy = loop.prepare(family_config, tmp_path / "run")  # the same, elsewhere, is no other
  copy.pipeline.close()
  shutil.rmtree(teacher / "checkpoints")
  write_run(teacher, checkpoint.stored_config(checkpoint.locate(teacher_run)), seed=1)
  message = refused(family_config, tmp_path / "run")
  assert message.startswith(f"the teacher {teacher} is not the one that this run learned from")


def test_members_have_the_shared_settings_and_their_own(family_config):
  configs = members(family_config)
  assert list(configs) == ["a", "b"]
  assert (configs["a"].model.width, configs["b"].model.width) == (16, 8)
  assert configs["b"].schedules.lr.peak == 0.01 and configs["b"].model.depth == 1
  assert configs["a"].crops == configs["b"].crops == family_config.crops
  assert not list(configs["b"].students) and configs["b"].is_locked
