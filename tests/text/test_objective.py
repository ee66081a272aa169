import jax
import numpy as np
import pytest

from dinov3_jax.losses.contrastive import contrastive_loss
from dinov3_jax.losses.gram import gram_loss
from dinov3_jax.text.networks import abstract_modules
from dinov3_jax.text.objective import make_encoders, make_objective, unit
from dinov3_jax.text.step import make_features


@pytest.fixture(scope="module")
def seen(recording):
  """What the networks make of the recorded batch, before the first step."""
  run = recording("dinotxt")
  batch = run.pairs(0)
  of_images, of_texts = make_encoders(abstract_modules(run.config, run.backbone)[0], np.float32)
  features = jax.jit(make_features(run.config, run.backbone))(
    run.backbone_params, batch["images"])
  images = jax.jit(of_images)(run.student, features)
  return dict(features=features, images=images, texts=jax.jit(of_texts)(
    run.student, batch["tokens"]), scale=np.exp(run.student["logit_scale"]), batch=batch)


def test_features_are_the_recorded_ones(golden, seen):
  record = golden("dinotxt")
  np.testing.assert_array_equal(seen["batch"]["tokens"], record["tokens"])
  for name, x in seen["features"].items():
    np.testing.assert_allclose(x, record[f"backbone_{name}"], atol=1e-5, rtol=1e-5)
  close = dict(atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(seen["images"]["patches"], record["head_patches"], **close)
  np.testing.assert_allclose(seen["images"]["image"], record["image_features"], **close)
  np.testing.assert_allclose(seen["texts"], record["text_features"], **close)
  for ours, name in ((unit(seen["images"]["image"]), "image"), (unit(seen["texts"]), "text")):
    np.testing.assert_allclose(ours, record[f"{name}_features_normalized"], **close)


def test_logits_and_losses_are_the_recorded_ones(golden, seen):
  record = golden("dinotxt")
  images, texts = unit(seen["images"]["image"]), unit(seen["texts"])
  np.testing.assert_allclose(seen["scale"], record["logit_scale_exp"], rtol=1e-6)
  np.testing.assert_allclose(seen["scale"] * images @ texts.T, record["image_logits"], atol=1e-4)
  np.testing.assert_allclose(contrastive_loss(images, texts, seen["scale"][0]),
                             record["contrastive_loss"], rtol=1e-5)
  patches = seen["images"]["patches"], seen["features"]["patches"]
  for normalized, name in ((True, "normalized"), (False, "raw")):
    np.testing.assert_allclose(gram_loss(*patches, normalized=normalized),
                               record[f"gram_loss_{name}"], rtol=1e-4)


def test_the_gram_loss_counts_with_its_weight(recording, seen):
  run = recording("dinotxt_gram")
  objective = make_objective(run.config, abstract_modules(run.config, run.backbone)[0])
  batch = dict(tokens=seen["batch"]["tokens"], features=seen["features"])
  total, metrics = jax.jit(objective)(run.student, batch, jax.random.key(0))
  np.testing.assert_allclose(
    total, metrics["contrastive_loss"] + run.config.gram.weight * metrics["gram_loss"], rtol=1e-6)


def test_stochastic_depth_is_drawn_from_the_key(recording, seen):
  run = recording("dinotxt")
  config = run.config.copy_and_resolve_references()
  config.vision_head.drop_path = 0.5
  objective = jax.jit(make_objective(config, abstract_modules(config, run.backbone)[0]))
  batch = dict(tokens=seen["batch"]["tokens"], features=seen["features"])
  losses = [objective(run.student, batch, jax.random.key(i))[0] for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]
