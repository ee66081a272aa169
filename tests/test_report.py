import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dinov3_jax import report
from dinov3_jax.train import images
from dinov3_jax.train.checkpoint import Writer
from dinov3_jax.train.state import init_state


@pytest.fixture
def config(tiny_config, tmp_path):
  """Images in two colours, which are their classes."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 8), ("val", 2), ("test", 6)):
    for i in range(count):
      path = tmp_path / "images" / split / ("blue", "red")[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      image = rng.integers(0, 40, (40, 48, 3), np.uint8)
      image[..., 0 if i % 2 else 2] += 200
      Image.fromarray(image).save(path)
  tiny_config.data.source = str(tmp_path / "images")
  tiny_config.evals.update(image_size=32, knn_k=1)
  return tiny_config


def save(workdir, config, state, step=7):
  with Writer(workdir, keep=1, keep_every=0) as writer:
    writer.save(step, state, {"step": step}, config)


def rows(table):
  """Accuracies by name; a name is what stands before the last word."""
  return {line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[1]
          for line in table.splitlines()[1:]}


def test_rows_of_the_table(config, tmp_path):
  state = jax.jit(lambda: init_state(config))()
  save(tmp_path / "same", config, state)
  table = report.report(tmp_path / "same")
  assert table.startswith("k-NN (k = 1, cosine) of 6 test images of ")
  found = rows(table)
  assert list(found) == ["raw pixels", "untrained network", "teacher, 7 steps"]
  assert found["raw pixels"] == "100.0%"
  # This teacher was never trained: the untrained network is the very one that a run starts with.
  assert found["untrained network"] == found["teacher, 7 steps"] == "100.0%"

  # A teacher that sees nothing answers with the first class; the other rows do not depend on it.
  kernel = state.teacher["backbone"]["patch_embed"]["kernel"]
  state.teacher["backbone"]["patch_embed"]["kernel"] = 0 * kernel
  save(tmp_path / "blind", config, state)
  assert rows(report.report(tmp_path / "blind")) == {**found, "teacher, 7 steps": "50.0%"}


def test_the_split_is_a_choice(config, tmp_path):
  save(tmp_path / "run", config, jax.jit(lambda: init_state(config))())
  assert "of 2 val images" in report.report(tmp_path / "run", "val")


def test_labels_that_only_reading_the_images_tells(config, tmp_path, monkeypatch):
  save(tmp_path / "run", config, jax.jit(lambda: init_state(config))())
  table = report.report(tmp_path / "run")

  def without(config, split):
    source = opened(config, split)
    source.label, source.labels = source.labels.__getitem__, None
    return source

  opened = images.open_images
  monkeypatch.setattr(images, "open_images", without)
  assert report.report(tmp_path / "run") == table


def test_no_checkpoint_is_one_clear_line(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["report", f"--workdir={tmp_path / 'none'}"])
  assert report.main() == 1
  error = capsys.readouterr().err
  assert error.startswith("error: no checkpoint in ") and error.count("\n") == 1


def test_a_run_of_text_is_one_clear_line(tmp_path, monkeypatch, capsys):
  save(tmp_path / "text", ConfigDict(dict(text=dict(width=8))), {"params": {"a": np.ones(2)}})
  monkeypatch.setattr("sys.argv", ["report", f"--workdir={tmp_path / 'text'}"])
  assert report.main() == 1
  error = capsys.readouterr().err
  assert error.startswith("error: this run has aligned text") and error.count("\n") == 1


def test_home_folder(config, tmp_path, monkeypatch, capsys):
  save(tmp_path / "run", config, jax.jit(lambda: init_state(config))())
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setattr("sys.argv", ["report", "--workdir", "~/run", "--split", "val"])
  assert report.main() == 0
  assert "of 2 val images" in capsys.readouterr().out


def test_images_without_labels_are_refused(config, tmp_path):
  for split in ("train", "val", "test"):
    path = tmp_path / "plain" / split / "image.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(path)
  config.data.source = str(tmp_path / "plain")
  save(tmp_path / "run", config, jax.jit(lambda: init_state(config))())
  with pytest.raises(ValueError, match="no labels"):
    report.report(tmp_path / "run")
