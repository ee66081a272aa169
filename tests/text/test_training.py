import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from dinov3_jax.text.training import open_split, prepare_text
from dinov3_jax.train import checkpoint, loop
from dinov3_jax.train.inputs import fetch

pytestmark = pytest.mark.usefixtures("one_device")


def metrics(folder):
  return {row["step"]: row for row in
          map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}


def test_a_run_is_saved_watched_and_evaluated(text_run, text_config):
  rows = metrics(text_run)
  assert sorted(rows) == [0, 1, 2, 3, 4]  # before the first step, too: what untrained towers reach
  assert "image_to_text_10" in rows[0]
  assert {"contrastive_loss", "logit_scale", "grad_norm/text_tower", "lr"} <= rows[1].keys()
  assert {"image_to_text_10", "text_to_image_01", "zeroshot_top1"} <= rows[4].keys()
  assert "image_to_text_10" not in rows[3]
  folder = checkpoint.latest(text_run)
  assert folder.name == "4"
  stored = checkpoint.stored_config(folder)
  assert len(stored.backbone.digest) == 16
  assert tuple(stored.images.mean) == (0.5, 0.4, 0.3)  # the backbone's, not the recipe's


def test_a_restart_continues_bit_for_bit(text_config, text_run, tmp_path):
  text_config.train.steps = 2
  loop.train(text_config, tmp_path, prepare=prepare_text)
  text_config.train.steps = 4
  again = loop.train(text_config, tmp_path, prepare=prepare_text)
  whole = loop.train(text_config, text_run, prepare=prepare_text)  # what it has saved
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_a_batch_on_the_devices_is_what_the_step_takes(text_config, tmp_path):
  run = prepare_text(text_config, tmp_path)
  batch, position = run.first
  assert batch["images"].shape == (16, 16, 16, 3) and batch["tokens"].shape == (16, 6)
  taken = run.with_targets(batch)
  assert set(taken) == {"images", "tokens", "backbone"}
  assert run.flops(batch).executed < run.flops(batch).full
  assert "trained parameters on 24 images with 48 captions (12 held out)" in run.describe()
  run.pipeline.set_state(position)
  assert not np.array_equal(fetch(run.pipeline, run.mesh)[0]["tokens"], batch["tokens"])
  run.pipeline.close()


def test_another_backbone_is_refused(text_config, text_run, tmp_path):
  text_config.backbone.digest = "0" * 16
  with pytest.raises(ValueError, match="is not the one that the text was aligned with"):
    prepare_text(text_config, tmp_path)


def test_sizes_must_fit_the_backbone(text_config, tmp_path):
  text_config.images.size = 20
  with pytest.raises(ValueError, match=r"images\.size 20 is not a multiple of the backbone's"):
    prepare_text(text_config, tmp_path)


def test_captions_that_are_cut_off_are_told(text_config, tmp_path, caplog):
  text_config.text.context = 4
  prepare_text(text_config, tmp_path).pipeline.close()
  assert "24 of 48 captions have more than 4 ids and are cut off there" in caplog.text


def test_without_held_out_pairs_nothing_is_evaluated(text_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  for i in range(4):
    Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.txt").write_text(str(i))
  text_config.data.source = str(tmp_path)
  run = prepare_text(text_config, tmp_path / "run")
  run.pipeline.close()
  assert run.held_out is None and run.observers({}) == {}
  assert "no evaluation: no image" in caplog.text
  with pytest.raises(ValueError, match="no image"):
    open_split(text_config, "test")


def test_other_networks_cannot_go_on(text_config, text_run):
  text_config.text.num_heads = 4
  with pytest.raises(ValueError, match=r"was trained with text\.num_heads = 2, this config has 4"):
    prepare_text(text_config, text_run)


def test_a_run_on_cached_features_goes_on_where_it_was(text_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  text_config.features.update(views=2, folder=str(tmp_path / "features"))
  text_config.evals.every, text_config.train.steps = 0, 2
  run = prepare_text(text_config, tmp_path / "run")
  batch, _ = run.first
  assert set(batch) == {"features", "tokens"}
  taken = run.with_targets(batch)
  assert set(taken) == {"features", "tokens"}
  assert taken["features"]["patches"].shape == (16, 4, 24)
  fresh = text_config.copy_and_resolve_references()
  fresh.features.views = 0
  assert run.flops(batch).full < prepare_text(fresh, tmp_path / "fresh").flops(batch).full
  _, third = next(run.pipeline), next(run.pipeline)
  run.pipeline.close()
  loop.train(text_config, tmp_path / "run", prepare=prepare_text)
  text_config.train.steps = 4
  again = prepare_text(text_config, tmp_path / "run")
  again.pipeline.close()
  assert again.start == 2
  for name, x in third.items():
    np.testing.assert_array_equal(again.first[0][name], x)
  assert caplog.text.count("computing the backbone's features") == 1
