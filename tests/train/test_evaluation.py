import chex
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dinov3_jax.data.sources import FolderSource
from dinov3_jax.train import evaluation, sharding
from dinov3_jax.train.objective import normalise
from dinov3_jax.train.state import abstract_modules, init_state

SIZE = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Red and blue pictures, told apart by any network; one file is no picture."""
  folder = tmp_path_factory.mktemp("colours")
  rng = np.random.default_rng(0)
  for split, count in (("train", 40), ("val", 10)):
    for i in range(count):
      picture = rng.integers(0, 60, (24, 30, 3), np.uint8)
      picture[..., 2 * (i % 2)] += 150
      path = folder / split / ("red", "blue")[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(picture).save(path)
  (folder / "val" / "red" / "broken.png").write_bytes(b"no picture")
  return folder


@pytest.fixture
def config(tiny_config):
  tiny_config.evals.update(every=10, knn_k=5, knn_images=30, image_size=SIZE, pictures=4,
                           picture_size=SIZE)
  return tiny_config


@pytest.fixture
def state(config):
  return init_state(config)


def make(config, workdir, bank, held_out, **options):
  return evaluation.Evaluation(config, workdir, sharding.make_mesh(config), bank, held_out,
                               **options)


def test_a_second_source_has_names_and_pictures_of_its_own(config, state, images, tmp_path):
  evaluate = make(config, tmp_path, FolderSource(images, "train"), FolderSource(images, "val"),
                  prefix="general/")
  metrics = {}
  evaluate(10, state, metrics)
  assert metrics == {"general/knn_top1": 1.0, "general/knn_top5": 1.0}
  assert (tmp_path / "pictures" / "general" / "step_0000010.png").is_file()


def test_k_nn_and_picture(config, state, images, tmp_path):
  evaluate = make(config, tmp_path, FolderSource(images, "train"), FolderSource(images, "val"))
  metrics = {"loss": 1.0}
  evaluate(7, state, metrics)
  assert metrics == {"loss": 1.0} and not (tmp_path / "pictures").exists()
  evaluate(10, state, metrics)
  assert metrics == {"loss": 1.0, "knn_top1": 1.0, "knn_top5": 1.0}
  evaluate(config.train.steps, state, metrics)
  names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
  assert names == ["step_0000010.png", f"step_{config.train.steps:07d}.png"]
  picture = np.asarray(Image.open(tmp_path / "pictures" / names[0]))
  assert picture.std() > 10 and min(picture.shape[:2]) > 160


def test_a_bank_of_wrong_labels_is_noticed(config, state, images, tmp_path):
  bank = FolderSource(images, "train")
  bank.labels = 1 - bank.labels
  evaluate = make(config, tmp_path, bank, FolderSource(images, "val"))
  metrics = {}
  evaluate(10, state, metrics)
  assert metrics["knn_top1"] == 0


@pytest.mark.parametrize("bank, held_out", [("red", "red"), ("red", ""), ("", "red")])
def test_without_labels_there_are_pictures_alone(config, state, images, tmp_path, caplog, bank,
                                                 held_out):
  sources = [FolderSource(images / "train" / name, "all") for name in (bank, held_out)]
  with caplog.at_level("INFO"):
    evaluate = make(config, tmp_path, *sources)
  assert [record.getMessage() for record in caplog.records
          if record.name == evaluation.__name__] == [
    f"no k-NN evaluation: the {'held-out images' if not bank else 'images'} have no labels"]
  metrics = {}
  evaluate(10, state, metrics)
  assert metrics == {} and (tmp_path / "pictures" / "step_0000010.png").exists()


def test_features_are_those_of_the_model(config, state, images, tmp_path):
  evaluate = make(config, tmp_path, *[FolderSource(images, split) for split in ("train", "val")])
  some = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
  backbone = state.teacher["backbone"]
  model = nnx.merge(abstract_modules(config)[0]["backbone"], backbone)
  expected = jax.jit(lambda x: model(x)["cls"])(
    normalise(some[:, None], config.crops.mean, config.crops.std, np.float32))
  batch = np.zeros((evaluation.BATCH, *some.shape[1:]), np.uint8)
  batch[:3] = some
  np.testing.assert_allclose(evaluate.cls(backbone, batch)[:3], expected, rtol=1e-5, atol=1e-5)


def test_read_images_leaves_damaged_ones_out(images):
  source = FolderSource(images, "val")
  batches = list(evaluation.read_images(source, range(len(source)), SIZE, 4))
  assert all(b["images"].shape == (4, SIZE, SIZE, 3) and b["images"].dtype == np.uint8
             for b in batches)
  found, labels, black = (np.concatenate(x) for x in zip(*(
    (b["found"], b["labels"], ~b["images"].any((1, 2, 3))) for b in batches)))
  assert len(found) == 12 and found.sum() == 10  # one is broken, and one row is left over
  assert sorted(labels[found]) == [0] * 5 + [1] * 5 and (labels[~found] == -1).all()
  np.testing.assert_array_equal(black, ~found)


def test_processes_read_their_own_rows(images):
  source = FolderSource(images, "val")
  every = list(evaluation.read_images(source, range(len(source)), SIZE, 4))
  some = list(evaluation.read_images(source, range(len(source)), SIZE, 4, [1, 3]))
  chex.assert_trees_all_equal(some, jax.tree.map(lambda x: x[[1, 3]], every))
