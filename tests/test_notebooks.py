"""The notebooks run from top to bottom, say what their text says, and are kept without outputs."""

import os
import pathlib
import re

import jupytext
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from dinov3_jax import recipes
from dinov3_jax.train.settings import check_settings

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SMALL = {"train.steps": 4, "train.batch_size": 16, "model.width": 32, "model.depth": 1,
         "model.num_heads": 2, "dino.hidden": 32, "ibot.hidden": 32, "schedules.lr.warmup_steps": 1,
         "schedules.teacher_temp.warmup_steps": 1, "schedules.teacher_temp.cosine_steps": 0,
         "koleo.group": 16, "log_every": 1, "evals.every": 4, "evals.knn_images": 64,
         "evals.picture_size": 64, "health.images": 8, "health.reference_at": 2}


def test_there_are_as_many_texts_as_notebooks():
  assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_without_outputs(name):
  shape = lambda book: [(cell.cell_type, cell.source, cell.metadata.get("tags"))
                        for cell in book.cells]
  kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  nbformat.validate(kept)
  assert shape(kept) == shape(jupytext.read(FOLDER / f"{name}.py")), (
    f"run jupytext --to ipynb --update notebooks/{name}.py")
  for cell in kept.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_in_colab_and_installs_from_the_same_address(name):
  """Whoever publishes a copy changes one name, as CONTRIBUTING.md says."""
  cells = jupytext.read(FOLDER / f"{name}.py").cells
  address = r"https://colab\.research\.google\.com/github/([\w-]+)/dinov3_jax/blob/main/notebooks"
  owner, = re.findall(rf"\[!\[Open in Colab\]\(\S+\)\]\({address}/{name}\.ipynb\)",
                      cells[0].source)
  assert f"@ git+https://github.com/{owner}/dinov3_jax" in cells[1].source


def parameters(name):
  """The values of a notebook's parameters as they stand."""
  book = jupytext.read(FOLDER / f"{name}.py")
  cell, = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
  values = {}
  exec(cell.source, values)
  return values


def test_settings_as_they_stand_fit_together(trained):
  """Runs of this file have others."""
  check_settings(recipes.load("quickstart", parameters("train")["SETTINGS"]))
  for name, key in (("features", "SETTINGS"), ("adapt", "FIRST")):
    check_settings(recipes.load("quickstart", parameters(name)[key]))
  adapted = recipes.load(f"adapt:{trained[0] / 'runs/quickstart'}", parameters("adapt")["SETTINGS"])
  check_settings(adapted)
  assert adapted.train.batch_size % adapted.koleo.group == 0


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
  """The environment of kernels: one device, and a home of their own."""
  home = tmp_path_factory.mktemp("home")
  changes = dict(
    IPYTHONDIR=str(home / "ipython"), XDG_CACHE_HOME=str(home / "cache"),
    PYTHONPATH=f"{FOLDER.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    XLA_FLAGS=os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1")
  return dict(os.environ, **changes)


def run(name, kernel, folder, **parameters):
  """Runs a notebook in a folder, with other parameters; returns its text, and its pictures."""
  book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  at = next(i for i, cell in enumerate(book.cells)
            if "parameters" in cell.metadata.get("tags", ()))
  assert all(f"{key} = " in book.cells[at].source for key in parameters)
  values = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
  book.cells.insert(at + 1, nbformat.v4.new_code_cell(values))
  client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3",
                                   resources=dict(metadata=dict(path=str(folder))))
  client.execute(env=kernel)
  if out := os.environ.get("NOTEBOOKS_OUT"):  # to look at
    nbformat.write(book, pathlib.Path(out) / f"{name}.ipynb")
  outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
  return ("".join(output.get("text", "") for output in outputs),
          [output for output in outputs if "image/png" in output.get("data", {})])


@pytest.fixture(scope="module")
def trained(kernel, tmp_path_factory):
  """The folder in which the notebook that trains ran, and what it showed."""
  folder = tmp_path_factory.mktemp("trained")
  return folder, *run("train", kernel, folder, SETTINGS=SMALL)


def test_training(trained):
  _, text, pictures = trained
  assert len(pictures) == 2 and "teacher, 4 steps" in text and "model.safetensors" in text
  assert "failed" not in text and "cannot be set up" not in text


def test_features(trained, kernel):
  """In the same folder, so that there are weights."""
  text, pictures = run("features", kernel, trained[0], SIZE=32, IMAGES=4)
  assert len(pictures) == 2 and "% of 580 unseen drawings, in 10 categories" in text
  assert "step" not in text


def test_adapting(trained, kernel):
  """In the same folder, so that there is a network to adapt."""
  settings = {name: SMALL[name] for name in ("train.steps", "train.batch_size", "log_every",
              "evals.every", "evals.knn_images", "health.images")} | {
    "crops.global_sizes": (32,), "crops.local_sizes": (24,), "crops.locals": 2,
    "evals.image_size": 32, "evals.picture_size": 64, "data.workers": 0, "koleo.group": 16,
    "optim.freeze_backbone_steps": 2, "optim.ramp_backbone_steps": 1,
    "schedules.momentum.cosine_steps": 0, "schedules.momentum.warmup_steps": 1,
    "schedules.teacher_temp.warmup_steps": 1}
  folder, rng = trained[0] / "mine", np.random.default_rng(0)
  for i in range(60):
    place = folder / ("val" if i % 3 == 0 else "train") / "ab"[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(place / f"{i}.png")
  text, pictures = run("adapt", kernel, trained[0], FOLDER=str(folder), SETTINGS=settings)
  assert len(pictures) == 2 and "runs/adapted has its 4 steps" in text
  assert re.search(r"^runs/quickstart: \d+\.\d %\nruns/adapted: \d+\.\d %$", text, re.MULTILINE)
  assert "quickstart has" not in text
