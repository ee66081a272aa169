"""SIGKILL while a mixture of sources is learnt from."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import decode
from dinov3_jax.data.order import order_of
from dinov3_jax.data.sources.mixture import open_parts
from dinov3_jax.data.sources.parts import Part
from tests.killed import check_kills

STEPS, BATCH = 8, 16


@pytest.fixture(scope="module")
def sources(tiny_recipe, tmp_path_factory):
  """A folder, a tar of other images, and a few that come in batches of their own."""
  root, rng = tmp_path_factory.mktemp("mixture"), np.random.default_rng(1)
  for name, count in (("others", 20), ("alone", 8)):
    (root / name).mkdir()
    for i in range(count):
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / name / f"{i:02}.png")
  with tarfile.open(root / "others.tar", "w") as tar:
    for path in sorted((root / "others").iterdir()):
      tar.add(path, path.name)
  return dict(folder=dict(source=str(tiny_recipe.parent / "images"), split="all", weight=2.0),
              tar=dict(source=str(root / "others.tar"), split="all", weight=1.0),
              alone=dict(source=str(root / "alone"), split="all", weight=0.4, homogeneous=True))


@pytest.mark.slow
def test_killed_twice_it_ends_the_same_to_the_last_bit(sources, tiny_recipe, tmp_path, stored):
  mixture = open_parts([Part(name, **part) for name, part in sources.items()], "train", decode)
  order = order_of(mixture, 0)
  drawn = [{order.part(step, step * BATCH + i) for i in range(BATCH)} for step in range(STEPS)]
  # The test is of mixed and of homogeneous batches, before the kills and after them.
  for steps in (drawn[:3], drawn[6:]):
    assert {2} in steps and {0, 1} in steps
  recipe = (f"import runpy\nconfig = runpy.run_path({str(tiny_recipe)!r})['get_config']()\n"
            f"with config.unlocked():\n  config.data.sources = {sources!r}")
  changes = {"data.source": "", "evals.every": 0, "health.images": 0, "train.steps": STEPS,
             "train.batch_size": BATCH}
  check_kills(recipe, changes, tmp_path, [(3, "rough"), (6, "rough")], stored)
