import json
import logging
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from configs import base
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights import native


@pytest.fixture
def run(tmp_path):
  """A run with two whole checkpoints, and one that a kill left unfinished."""
  for step in (4, 12):
    folder = tmp_path / native.FOLDER / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
  (tmp_path / native.FOLDER / "20.orbax-checkpoint-tmp-1").mkdir()
  return tmp_path


def test_the_newest_whole_checkpoint_is_a_runs(run):
  assert native.latest(run).name == native.locate(run).name == "12"


def test_a_checkpoint_may_be_named_itself(run):
  assert native.locate(run / native.FOLDER / "4").name == "4"


def test_where_there_is_none(tmp_path):
  assert native.latest(tmp_path) is None
  with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: give the --workdir of a run"):
    native.locate(tmp_path)


def abstract(tree, dtype=None):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=device),
                      tree)


@pytest.fixture(scope="module")
def state():
  """Arrays as a run has them: several networks, and an optimizer's tuples."""
  keys = iter(jax.random.split(jax.random.key(0), 6))
  network = lambda: {"backbone": {"cls_token": jax.random.normal(next(keys), (1, 1, 8)),
                                  "blocks": {"bias": jax.random.normal(next(keys), (2, 16))}},
                     "head": {"kernel": jax.random.normal(next(keys), (4, 4))}}
  params = network()
  optimizer = optax.chain(optax.clip(1.0), optax.scale_by_adam())
  return {"step": jnp.int32(3), "student": params, "teacher": network(),
          "opt_state": optimizer.init(params)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
  """A checkpoint, which tests leave as it is."""
  return write(tmp_path_factory.mktemp("run"), state)


@pytest.fixture(scope="module")
def old(tmp_path_factory, state):
  """A checkpoint as earlier versions wrote them, without checksums."""
  return write(tmp_path_factory.mktemp("old"), state, verify=False)


def write(workdir, state, verify=True):
  with Writer(workdir, keep=1, keep_every=0, verify=verify) as writer:
    writer.save(3, state, {"step": 3, "of": [1, 2]}, base.get_config())
  return native.latest(workdir)


@pytest.fixture
def reads(monkeypatch):
  """How many arrays were read at once, by call."""
  reads, restore = [], native._restore

  def note(folder, abstract):
    reads.append(sum(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(abstract)))
    return restore(folder, abstract)

  monkeypatch.setattr(native, "_restore", note)
  return reads


@pytest.mark.parametrize("verify", [True, False])
def test_all_arrays_come_back_to_the_last_bit_at_once(folder, state, reads, verify):
  read = native.read_arrays(folder, abstract(state), verify)
  chex.assert_trees_all_equal(read, state)
  chex.assert_trees_all_equal_structs(read, state)
  assert reads == [len(jax.tree.leaves(state))]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("part", ["student", "opt_state"])
def test_a_part_is_read_and_verified_by_itself(folder, state, part, verify):
  read = native.read_arrays(folder, abstract({part: state[part]}), verify)
  chex.assert_trees_all_equal(read, {part: state[part]})


@pytest.mark.parametrize("verify", [True, False])
def test_a_part_of_a_part(folder, state, verify):
  wanted = {"teacher": {"backbone": {"cls_token": state["teacher"]["backbone"]["cls_token"]}}}
  chex.assert_trees_all_equal(native.read_arrays(folder, abstract(wanted), verify), wanted)


@pytest.mark.parametrize("limit, parts", [(2**30, [6]), (100, [1, 3, 2]), (1, [1] * 6)])
def test_arrays_that_are_cast_are_read_part_by_part(folder, state, reads, monkeypatch, limit,
                                                    parts):
  """Each is verified as it is stored, and then cast: both copies of all may be too much."""
  monkeypatch.setattr(native, "CAST_BYTES", limit)
  wanted = {name: state[name] for name in ("student", "teacher")}
  read = native.read_arrays(folder, abstract(wanted, jnp.bfloat16))
  chex.assert_trees_all_equal(read, jax.tree.map(lambda x: x.astype(jnp.bfloat16), wanted))
  assert reads == parts


def test_tuples_are_cast_as_well(folder, state, monkeypatch):
  monkeypatch.setattr(native, "CAST_BYTES", 100)
  wanted = {"opt_state": state["opt_state"], "step": state["step"]}
  cast = jax.tree.map(lambda x: x.astype(jnp.float32), wanted)
  read = native.read_arrays(folder, abstract(cast))
  chex.assert_trees_all_equal(read, cast)
  chex.assert_trees_all_equal_structs(read, cast)


def test_without_checksums_arrays_are_read_all_the_same(old, state):
  assert native.stored_checksums(old) is None
  chex.assert_trees_all_equal(native.read_arrays(old, abstract(state)), state)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["teacher"])
  chex.assert_trees_all_equal(native.read_arrays(old, abstract({"teacher": half})),
                              {"teacher": half})
  assert native.stored_position(old) == {"step": 3, "of": [1, 2]}
  assert native.stored_settings(old) == json.loads(base.get_config().to_json())


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_array_that_it_does_not_have_is_named(folder, verify, dtype):
  wanted = {"student": {"backbone": {"pos_embed": jnp.zeros((1, 4), dtype)}}}
  with pytest.raises(ValueError, match=r"3 has no array student/backbone/pos_embed") as caught:
    native.read_arrays(folder, abstract(wanted), verify)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 1, 12), (8,)])
def test_an_array_of_another_shape_is_named(folder, verify, shape):
  """And neither cut nor filled up."""
  wanted = {"student": {"backbone": {"cls_token": jnp.zeros(shape)}}}
  said = f"3, student/backbone/cls_token has the shape [1, 1, 8], not {list(shape)}"
  with pytest.raises(ValueError, match=re.escape(said)):
    native.read_arrays(folder, abstract(wanted), verify)


def test_what_is_stored_is_told_without_reading_it(folder, state, reads):
  shapes = lambda tree: {name: (tuple(x.shape), jnp.dtype(x.dtype))
                         for name, x in native._by_name(tree).items()}
  assert shapes(native.stored_arrays(folder)) == shapes(state)
  assert native.stored_position(folder) == {"step": 3, "of": [1, 2]}
  assert native.stored_settings(folder) == json.loads(base.get_config().to_json())
  assert set(native.stored_checksums(folder)) == {"arrays", "config", "data"}
  assert reads == []


def file_with(folder, text):
  path, = (path for path in pathlib.Path(folder).rglob("*")
           if path.is_file() and text in path.read_bytes())
  return path


@pytest.mark.parametrize("item, read", [("data", native.stored_position),
                                        ("config", native.stored_settings)])
def test_what_is_valid_and_not_what_was_written_is_damaged(tmp_path, state, item, read):
  folder = write(tmp_path, state)
  path = file_with(folder / item, b"{")
  path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 4}))
  with pytest.raises(native.DamagedCheckpoint, match=rf"its {item} is not what was written") as c:
    read(folder)
  assert c.value.folder == folder and str(folder) in str(c.value) and "\n" not in str(c.value)
  path.write_text("{")
  with pytest.raises(native.DamagedCheckpoint, match=rf"its {item} cannot be read"):
    read(folder)


@pytest.mark.parametrize("limit", [2**30, 1])
def test_of_several_wrong_arrays_the_first_is_named(tmp_path, state, limit, monkeypatch):
  monkeypatch.setattr(native, "CAST_BYTES", limit)
  folder = write(tmp_path, state)
  path = file_with(folder / native.CHECKSUMS, b'"arrays"')
  sums = json.loads(path.read_text())
  for name in ("backbone/cls_token", "head/kernel"):
    sums["arrays"][f"student/{name}"] = "0" * 16
  path.write_text(json.dumps(sums))
  chex.assert_trees_all_equal(native.read_arrays(folder, abstract({"teacher": state["teacher"]})),
                              {"teacher": state["teacher"]})
  for dtype in (None, jnp.bfloat16):
    more = "" if dtype and limit == 1 else " and 1 more arrays"
    with pytest.raises(native.DamagedCheckpoint,
                       match=f"student/backbone/cls_token{more} are not what was written"):
      native.read_arrays(folder, abstract({"student": state["student"]}, dtype))


def test_another_list_of_arrays_is_damaged(tmp_path, state):
  folder = write(tmp_path, state)
  path = file_with(folder / native.CHECKSUMS, b'"arrays"')
  sums = json.loads(path.read_text())
  del sums["arrays"]["teacher/head/kernel"]
  path.write_text(json.dumps(sums))
  with pytest.raises(native.DamagedCheckpoint, match="teacher/head/kernel differs"):
    native.stored_arrays(folder)


def test_asyncio_is_quiet_about_what_orbax_has_told(caplog):
  """Its line names only the error; where it came from, the stack alone says."""
  for file, lines in (("/site-packages/orbax/checkpoint/x.py", 0), ("/somewhere/else.py", 1)):
    caplog.clear()
    try:
      exec(compile("raise OSError(28, 'No space left on device')", file, "exec"))
    except OSError as error:
      logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=error)
    assert len(caplog.records) == lines
