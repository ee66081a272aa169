import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import TrainState

SETTINGS = base.get_config()


def make_params(seed=0, width=8, prototypes=6):
  keys = iter(jax.random.split(jax.random.key(seed), 4))
  return {
    "backbone": {"cls_token": jax.random.normal(next(keys), (1, 1, width)),
                 "blocks": {"mlp": {"fc1": {"bias": jax.random.normal(next(keys), (2, width))}}}},
    "dino_head": {"last_layer": {"kernel": jax.random.normal(next(keys), (4, prototypes))}},
    "ibot_head": {"mlp": {"0": {"bias": jax.random.normal(next(keys), (4,))}}},
  }


def make_state(seed=0, step=3, gram=True, **shape):
  student, teacher = make_params(seed, **shape), make_params(seed + 1, **shape)
  optimizer = optax.chain(optax.clip(1.0), optax.scale_by_adam())
  return TrainState(
    step=jnp.int32(step), student=student, teacher=teacher,
    gram_teacher={"backbone": make_params(seed + 2, **shape)["backbone"]} if gram else None,
    opt_state=optimizer.init(student))


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def write(workdir, state, step=3, config=SETTINGS, position=None):
  with checkpoint.Writer(workdir, keep=3, keep_every=0) as writer:
    writer.save(step, state, position or {}, config)
  return checkpoint.latest(workdir)


def settings(**changes):
  config = base.get_config()
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize("gram", [True, False])
def test_restores_every_bit_and_the_position(tmp_path, gram):
  state = make_state(gram=gram)
  folder = write(tmp_path, state, position={"epoch": 2, "next": [5, None]})
  restored = checkpoint.restore(folder, abstract(state))
  chex.assert_trees_all_equal(restored, state)
  chex.assert_trees_all_equal_structs(restored, state)
  assert checkpoint.stored_position(folder) == {"epoch": 2, "next": [5, None]}


def test_restores_to_other_shardings(tmp_path):
  state = make_state()
  folder = write(tmp_path, state)
  mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec())
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
  restored = checkpoint.restore(folder, wanted)
  assert all(x.sharding == sharding for x in jax.tree.leaves(restored))
  chex.assert_trees_all_equal(restored, state)


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  folder = write(tmp_path, make_state(), step=3)
  (folder.parent / "7.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  assert checkpoint.latest(tmp_path) == folder


def test_changes_of_settings_are_told(tmp_path):
  folder = write(tmp_path, make_state(), config=settings(seed=11))
  assert checkpoint.changes(folder, settings(seed=11)) == []
  changed = settings(**{"seed": 12, "crops.global_sizes": (256,), "gram.copy_ema_at": 5})
  assert set(checkpoint.changes(folder, changed)) == {
    "seed: 11 -> 12", "crops.global_sizes: [224] -> [256]", "gram.copy_ema_at: None -> 5"}


def test_locate(tmp_path):
  assert checkpoint.latest(tmp_path) is None
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    checkpoint.locate(tmp_path)
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    checkpoint.locate(tmp_path / "absent")
  folder = write(tmp_path, make_state())
  assert checkpoint.locate(tmp_path) == checkpoint.locate(folder) == folder


def test_other_shapes_are_refused_by_name(tmp_path):
  folder = write(tmp_path, make_state())
  checkpoint.check(folder, make_state(seed=5), SETTINGS)
  with pytest.raises(ValueError, match=r"cls_token is float32\[1, 1, 8\] there, "
                                       r"float32\[1, 1, 12\] here; .* more:") as caught:
    checkpoint.check(folder, make_state(width=12), SETTINGS)
  assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match="dino_head/last_layer/kernel"):
    checkpoint.check(folder, make_state(prototypes=7), SETTINGS)
  with pytest.raises(ValueError, match=r"gram_teacher/backbone/\S+ is .* there, missing"):
    checkpoint.check(folder, make_state(gram=False), SETTINGS)


@pytest.mark.parametrize("key, value", [("num_heads", 8), ("rope.base", 50.0), ("norm_eps", 1e-5)])
def test_another_model_of_the_same_shapes_is_refused(tmp_path, key, value):
  folder = write(tmp_path, make_state())
  with pytest.raises(ValueError, match=f"model.{key} = "):
    checkpoint.check(folder, make_state(), settings(**{f"model.{key}": value}))


def test_teacher_alone(tmp_path):
  state = make_state()
  folder = write(tmp_path, state, config=settings(seed=11))
  for path in (tmp_path, folder):
    teacher, config = checkpoint.restore_teacher(path)
    chex.assert_trees_all_equal(teacher, state.teacher)
    assert config.seed == 11 and config.model.to_dict() == SETTINGS.model.to_dict()
  part, _ = checkpoint.restore_teacher(tmp_path, {"backbone": abstract(state.teacher["backbone"])})
  assert list(part) == ["backbone"]
  chex.assert_trees_all_equal(part["backbone"], state.teacher["backbone"])
  with pytest.raises(ValueError, match="dino_head/last_layer/kernel"):
    checkpoint.restore_teacher(tmp_path, abstract(make_state(prototypes=7).teacher))
