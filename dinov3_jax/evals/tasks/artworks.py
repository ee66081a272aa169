"""Instance recognition on Met: GAP, GAP- and accuracy of a k-NN classifier."""

import json
import pathlib

import numpy as np

from dinov3_jax.evals import met
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.session import LayoutError, Result, Session

SIZE = 512
LAYOUT = ("images/, and in ground_truth/ MET_database.json (or mini_MET_database.json), "
          "valset.json and testset.json")
DIMS = 512  # kept by the original code; the paper does not say
PAPER = {"vit7b16": {"GAP": 55.4, "GAP-": 77.7, "accuracy": 80.7}}  # table 23


def read_list(session: Session, name: str) -> tuple[list[pathlib.Path], np.ndarray]:
  """The images of a list and the ids of their works; -1 for distractors.

  Raises:
    LayoutError: a list of another form, or an image that is not there.
  """
  path = session.path(f"ground_truth/{name}.json", LAYOUT)
  try:
    entries = json.loads(path.read_text())
    images = [session.data / "images" / entry["path"] for entry in entries]
    ids = [int(entry.get("MET_id", entry["id"] if "database" in name else -1)) for entry in entries]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise LayoutError(f"{path} is no list of Met's images: {error}") from error
  for image in images:
    if not image.exists():
      raise LayoutError(f"{image} is in {path.name}, but it is not there")
  return images, np.array(ids)


def run(session: Session) -> Result:
  """Whitened CLS features; k and tau are chosen by the GAP of the validation set."""
  size = session.side(SIZE)
  look = framing(session.prepare, size, "pad")
  small = not (session.data / "ground_truth/MET_database.json").exists()
  data = {}
  for key, name in (("train", "mini_MET_database" if small else "MET_database"),
                    ("val", "valset"), ("test", "testset")):
    images, ids = read_list(session, name)
    chosen = session.some(range(len(images)))
    x, kept = session.features([images[i] for i in chosen], look)
    data[key] = x, ids[chosen][kept]
  bank, ids = data["train"]
  dims = min(rank(bank), DIMS)
  whiten = met.fit_whitening(bank, dims)
  train, val, test = (whiten(data[key][0]) for key in ("train", "val", "test"))
  k, tau, _ = met.tune(train, ids, val, data["val"][1])
  figures = met.figures(*met.classify(train, ids, test, k, tau), data["test"][1])
  return Result(
    {"GAP": 100 * figures["gap"], "GAP-": 100 * figures["gap_minus"],
     "accuracy": 100 * figures["accuracy"]},
    dict(size=size, dims=dims, k=k, tau=tau, train=len(ids), val=len(val), test=len(test)),
    [f"images of {size} pixels, padded to a square, not of their own aspect ratio"]
    + ["the small database, mini_MET_database"] * small
    + [f"{session.limit} images of each list"] * (session.limit is not None), PAPER)


def rank(features: np.ndarray) -> int:
  """How many dimensions these features can be whitened to."""
  centred = features.astype(np.float64)
  centred -= centred.mean(0)  # of float32 it would leave a direction that is no one's
  variance = np.linalg.eigvalsh(centred.T @ centred)
  return int(min((variance > 1e-10 * variance[-1]).sum(), len(features) - 1))
