import jax
import numpy as np
import pytest

from dinov3_jax.data.pairs import open_pairs
from dinov3_jax.text.evaluation import TextEvaluation, in_batches
from dinov3_jax.text.loading import load_text
from dinov3_jax.text.retrieval import recall
from dinov3_jax.text.state import TextState
from dinov3_jax.train import sharding


@pytest.fixture
def made(text_config, text_run):
  """An evaluation of a tiny run on one device, and the run's model."""
  text_config.mesh.update(data=1)
  mesh = sharding.make_mesh(text_config, jax.devices()[:1])
  model = load_text(text_run)
  pairs = open_pairs(text_config.data.source, "val")
  hook = TextEvaluation(text_config, mesh, model.backbone, pairs, model.tokenizer)
  return hook, model, pairs


def test_figures_are_those_of_the_features(made):
  hook, model, pairs = made
  found = hook.measure(model.params)
  images = np.concatenate([model.encode_image(model.preprocess(
    pairs[i]["image"][:, 2:22])[None])["global"] for i in range(12)])
  texts = model.encode_text([pairs.captions[i][0] for i in range(12)])["global"]
  assert {"zeroshot_top1", "zeroshot_top5"} <= found.keys()
  expected = recall(images, texts, range(12))
  assert found.keys() - expected.keys() == {"zeroshot_top1", "zeroshot_top5"}
  assert found["image_to_text_10"] == pytest.approx(expected["image_to_text_10"], abs=0.2)


def test_it_looks_where_it_is_due(made):
  hook, model, _ = made
  looked = []
  hook.measure = lambda student: looked.append(1) or {"x": 1.0}
  state = TextState(None, model.params, None)
  for step in range(5):
    metrics = {}
    hook(step, state, metrics)
    assert bool(metrics) == (step in (0, 4))
  hook._done = 4
  hook(4, state, {})
  assert len(looked) == 2


def test_the_last_batch_is_filled_up():
  seen = []

  def f(rows):
    seen.append(rows.tolist())
    return 10 * rows

  np.testing.assert_array_equal(in_batches(f, np.arange(5), 2), 10 * np.arange(5))
  assert seen == [[0, 1], [2, 3], [4, 4]]
