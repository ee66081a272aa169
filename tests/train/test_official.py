import re

import chex
import jax
import numpy as np
import pytest

from dinov3_jax.train import official


@pytest.fixture(params=["pretrain", "gram"])
def run(request, trajectory):
  return trajectory(request.param)


def test_there_and_back(run):
  state = run.state()
  networks = {"student": state.student, "teacher": state.teacher}
  if state.gram_teacher is not None:
    networks["gram"] = state.gram_teacher
  back = official.state_dict(networks)
  assert set(back) == set(run.arrays)
  for name, array in back.items():
    np.testing.assert_array_equal(array, run.arrays[name], err_msg=name)
    assert array.dtype == np.float32 and array.flags.c_contiguous
  again = official.train_state(run.config, back)
  chex.assert_trees_all_equal(again, state)


def test_names_and_shapes_are_the_references(run):
  ours = official.state_dict({"student": run.state().student})
  assert {name: list(x.shape) for name, x in ours.items()} == run.record["shapes"]


def test_the_state_is_that_before_the_first_step(run):
  state = run.state()
  assert state.step == 0 and (state.gram_teacher is None) == (run.record["GT"] is None)
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_one_error_lists_all_that_does_not_fit(run):
  arrays = dict(run.arrays)
  del arrays["teacher.ibot_head.mlp.2.bias"], arrays["student.backbone.blocks.1.ls1.gamma"]
  arrays["student.backbone.head.weight"] = arrays["cls_token"] = np.zeros(3, np.float32)
  arrays["student.dino_head.last_layer.weight"] = np.zeros((500, 48), np.float32)
  arrays["student.backbone.blocks.2.attn.qkv.weight"] = np.zeros((64, 192), np.float32)
  with pytest.raises(ValueError) as error:
    official.train_state(run.config, arrays)
  message = str(error.value)
  assert "\n" not in message
  missing, unused, *shapes = re.split("; ", message.partition("; ")[2])
  assert missing.startswith("missing: ") and unused.startswith("of no use: ")
  assert {"teacher.ibot_head.mlp.2.bias", "student.backbone.blocks.1.ls1.gamma"} == set(
      missing.removeprefix("missing: ").split(", "))
  assert unused == "of no use: cls_token, student.backbone.head.weight"
  assert sorted(shapes) == [
      "student.backbone.blocks.2.attn.qkv.weight is [64, 192], expected [192, 64]",
      "student.dino_head.last_layer.weight is [500, 48], expected [512, 48]"]


def test_a_missing_or_needless_gram_teacher(trajectory):
  gram, plain = trajectory("gram"), trajectory("pretrain")
  with pytest.raises(ValueError, match=r"missing: gram\.backbone\."):
    official.train_state(gram.config, plain.arrays)
  with pytest.raises(ValueError, match=r"of no use: gram\.backbone\."):
    official.train_state(plain.config, gram.arrays)


def test_buffers_may_be_there_and_must_agree(trajectory):
  gram = trajectory("gram")
  mask = np.repeat(np.float32([1, 0, 1]), 64)
  periods = np.float32(100 ** (np.arange(8) / 8))
  prefix = "teacher.backbone."
  buffers = {prefix + "rope_embed.periods": periods,
             prefix + "blocks.1.attn.qkv.bias_mask": mask}
  chex.assert_trees_all_equal(official.train_state(gram.config, gram.arrays | buffers),
                              gram.state())
  name = prefix + "rope_embed.periods"
  with pytest.raises(ValueError, match=re.escape(name)):
    official.train_state(gram.config, gram.arrays | {name: 2 * periods})
  plain = trajectory("pretrain")  # whose keys have a bias
  with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias_mask"):
    official.train_state(plain.config, plain.arrays | buffers)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_batch(trajectory, shards):
  """Ours image by image against theirs crop by crop."""
  run = trajectory("gram")
  theirs = run.collated(0, images=4)
  masks = np.zeros((8, 36), bool)
  rng = np.random.default_rng(0)
  for image in range(4):  # as many masked patches for every image, in its second crop
    masks[4 + image, rng.choice(36, 5, replace=False)] = True
  theirs["masks"] = masks
  ours = official.batch(theirs, shards)
  assert set(ours) == {"global_crops", "local_crops", "gram_crops", "masks", "mask_indices",
                       "mask_weights"}
  for name, crops in [("global_crops", 2), ("local_crops", 4), ("gram_crops", 2)]:
    size = theirs[name].shape[-1]
    assert ours[name].shape == (4, crops, size, size, 3)
    for image in range(4):
      for crop in range(crops):
        np.testing.assert_array_equal(ours[name][image, crop],
                                      theirs[name][crop * 4 + image].transpose(1, 2, 0))
  assert ours["masks"].shape == (4, 2, 36) and ours["masks"].dtype == bool
  np.testing.assert_array_equal(ours["masks"][:, 1], masks[4:])
  np.testing.assert_array_equal(ours["masks"][:, 0], masks[:4])
  assert ours["mask_indices"].shape == ours["mask_weights"].shape == (shards, 20 // shards)
  assert ours["mask_indices"].dtype == np.int32 and ours["mask_weights"].dtype == np.float32
  np.testing.assert_allclose(ours["mask_weights"], 1 / 5)
  for shard, indices in zip(np.split(ours["masks"], shards), ours["mask_indices"]):
    np.testing.assert_array_equal(np.flatnonzero(shard), np.sort(indices))


def test_weights_follow_their_patches(trajectory):
  """The reference's order differs; each patch keeps the weight of its crop."""
  theirs = trajectory("pretrain").collated(3)
  ours = official.batch(theirs)
  weights = np.zeros(8 * 36, np.float32)
  weights[theirs["mask_indices"]] = theirs["mask_weights"]
  expected = weights.reshape(2, 4, 36).swapaxes(0, 1).ravel()
  np.testing.assert_array_equal(ours["mask_weights"][0], expected[ours["mask_indices"][0]])
  assert len(set(ours["mask_weights"][0])) > 2 and "gram_crops" not in ours


def test_batch_errors(trajectory):
  theirs = trajectory("pretrain").collated(0)
  with pytest.raises(ValueError, match="3 shards do not divide 4 images"):
    official.batch(theirs, 3)
  with pytest.raises(ValueError, match=r"the shards hold \[.*\] masked patches; each must hold"):
    official.batch(theirs, 2)


def test_a_teacher_is_read_by_its_official_names(distillation):
  run = distillation("distill")
  back = official.state_dict({"teacher": run.teacher})
  assert set(back) == set(run.teacher_arrays)
  for name, array in run.teacher_arrays.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)
  lacking = {name: x for name, x in run.teacher_arrays.items() if "ibot_head" not in name}
  with pytest.raises(ValueError, match=r"missing: teacher\.ibot_head"):
    official.teacher_params(run.teacher_config, lacking)


def test_the_average_of_a_distillation_is_read_where_it_is_stored(distillation):
  student = distillation("distill").students["student"]
  average = {name.replace("student.", "model_ema.", 1): 2 * x
             for name, x in student.arrays.items()}
  state = official.distilled_state(student.config, student.arrays | average)
  chex.assert_trees_all_equal(state.teacher, jax.tree.map(lambda x: 2 * x, state.student))
