import jax
import numpy as np

from dinov3_jax.text.encoding import make_encode
from dinov3_jax.train import sharding


def test_both_sides_are_the_recorded_ones_and_of_unit_length(recording, golden):
  run, record = recording("dinotxt"), golden("dinotxt")
  batch = run.pairs(0)
  encode_images, encode_texts = make_encode(run.config, run.backbone)
  seen = encode_images(run.backbone_params, run.student, batch["images"])
  told = encode_texts(run.student, batch["tokens"])
  np.testing.assert_allclose(seen["global"], record["image_features_normalized"], atol=1e-5)
  np.testing.assert_allclose(told["global"], record["text_features_normalized"], atol=1e-5)
  half = record["text_features"][:, 64:]
  np.testing.assert_allclose(told["patches"], half / np.linalg.norm(half, axis=1, keepdims=True),
                             atol=1e-5)
  patches = record["head_patches"]
  np.testing.assert_allclose(
    seen["patches"], patches / np.linalg.norm(patches, axis=-1, keepdims=True), atol=1e-5)


def test_shards_share_the_rows(recording):
  run = recording("dinotxt")
  config = run.config.copy_and_resolve_references()
  config.mesh.update(data=2, fsdp=2, tensor=1)
  mesh = sharding.make_mesh(config, jax.devices()[:4])
  place = lambda tree: jax.device_put(tree, sharding.state_sharding(mesh, tree))
  student, backbone = place(run.student), place({"backbone": run.backbone_params})["backbone"]
  batch = sharding.place_batch(run.pairs(0), mesh)
  spread, alone = make_encode(config, run.backbone, mesh), make_encode(config, run.backbone)
  for name in ("global", "patches"):
    np.testing.assert_allclose(
      spread[0](backbone, student, batch["images"])[name],
      alone[0](run.backbone_params, run.student, run.pairs(0)["images"])[name], atol=1e-5)
    np.testing.assert_allclose(
      spread[1](student, batch["tokens"])[name],
      alone[1](run.student, run.pairs(0)["tokens"])[name], atol=1e-5)
