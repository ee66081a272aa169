"""Retrieval of instances: revisited Oxford and Paris, AmsterTime."""

import pathlib

import numpy as np

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.evals import plain_pickle, retrieval
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session

SIZE = 224  # paper D.8
AMSTERTIME_SHORTER = 256
SHOWN = 5  # images of a row
# Table 9 (Oxford, hard) and table 23, by model.
PAPER_OXFORD = {
  "vits16": {"roxford5k hard": 49.5}, "vits16plus": {"roxford5k hard": 50.0},
  "vitb16": {"roxford5k hard": 58.5}, "vitl16": {"roxford5k hard": 63.1},
  "vith16plus": {"roxford5k hard": 64.5},
  "vit7b16": {"roxford5k medium": 81.1, "roxford5k hard": 60.7, "rparis6k medium": 93.3,
              "rparis6k hard": 87.1},
}
PAPER_AMSTERTIME = {"vit7b16": {"mAP": 56.5}}


def read_truth(path: pathlib.Path) -> dict:
  """`imlist`, `qimlist` and `gnd` of a file of revisited Oxford or Paris.

  Raises:
    LayoutError: another file, or one that would run code when it is read.
  """
  try:
    truth = plain_pickle.load(path)
  except ValueError as error:
    raise LayoutError(f"{error}; wanted is one of revisited Oxford or Paris") from error
  if not isinstance(truth, dict) or not {"imlist", "qimlist", "gnd"} <= truth.keys():
    raise LayoutError(f"{path} has no imlist, qimlist and gnd: wanted is gnd_roxford5k.pkl or "
                      "gnd_rparis6k.pkl")
  return truth


def oxford(session: Session) -> Result:
  """Whole images are queries; the larger side is resized, and zeros fill the square."""
  files = sorted(session.data.glob("gnd_*.pkl"))
  if not files:
    session.path("gnd_roxford5k.pkl", "gnd_roxford5k.pkl or gnd_rparis6k.pkl beside jpg/")
  folder = session.path("jpg", "the images in jpg/ beside gnd_*.pkl")
  figures, protocol, pictures = {}, dict(size=session.side(SIZE), queries="whole images"), {}
  for file in files:
    truth = read_truth(file)
    name = file.stem.removeprefix("gnd_")
    database, queries = ([folder / f"{image}.jpg" for image in truth[key]]
                         for key in ("imlist", "qimlist"))
    missing = [path for path in (*database, *queries) if not path.exists()]
    if missing:
      raise LayoutError(f"{missing[0]} is in {file.name}, but it is not there; {len(missing)} of "
                        f"{len(database) + len(queries)} images are missing")
    look = framing(session.prepare, session.side(SIZE), "pad")
    (bank, had), (asked, kept) = (session.features(x, look) for x in (database, queries))
    place = np.full(len(database), -1)
    place[had] = np.arange(len(had))
    own = [{key: [place[i] for i in truth["gnd"][q][key] if place[i] >= 0]
            for key in ("easy", "hard", "junk")} for q in kept]
    ranks = retrieval.rank(asked, bank)
    for protocol_name in ("easy", "medium", "hard"):
      if any(x[key] for x in own for key in retrieval.PROTOCOLS[protocol_name][0]):
        result = retrieval.revisited(ranks, own, protocol_name)
        figures[f"{name} {protocol_name}"] = 100 * result["map"]
    right = [set(x["easy"]) | set(x["hard"]) for x in own]
    pictures[f"{name}.png"] = _rows([queries[i] for i in kept], [database[i] for i in had], ranks,
                                    right)
    protocol |= {f"{name} images": len(had), f"{name} queries": len(kept)}
  differs = ["queries are whole images; the paper does not say whether it cuts them to their boxes"]
  if session.side(SIZE) != SIZE:
    differs.append(f"images of {session.side(SIZE)} pixels, not {SIZE}")
  return Result(figures, protocol, differs, PAPER_OXFORD, pictures)


def amstertime(session: Session) -> Result:
  """Old photographs by new ones and the other way round; mAP over the whole ranking."""
  wanted = "new/ and old/ with images of the same names (0000.png, 0000.jpg)"
  folders = [session.path(name, wanted) for name in ("new", "old")]
  new, old = ({p.stem: p for p in sorted(folder.iterdir()) if not p.name.startswith(".")}
              for folder in folders)
  alone = sorted(new.keys() ^ old.keys())
  if alone or not new:
    raise LayoutError(f"{session.data} has {alone[0]} in one of new/ and old/ only: wanted is "
                      f"{wanted}" if alone else f"{folders[0]} is empty: wanted is {wanted}")
  names = session.some(sorted(new))
  size = session.side(SIZE)
  look = framing(session.prepare, size, shorter=size * AMSTERTIME_SHORTER // SIZE)
  (x, first), (y, second) = (session.features([images[name] for name in names], look)
                             for images in (new, old))
  both = np.intersect1d(first, second)
  x, y = x[np.isin(first, both)], y[np.isin(second, both)]
  found = retrieval.amstertime(x, y)
  ranks = retrieval.rank(x, y)
  picture = _rows([new[names[i]] for i in both], [old[names[i]] for i in both], ranks,
                  [{i} for i in range(len(both))])
  return Result(
    {"mAP": 100 * found["all"]["map"], "mAP, old queries": 100 * found["old"]["map"],
     "mAP, new queries": 100 * found["new"]["map"], "top-1": 100 * found["all"]["top1"]},
    dict(size=size, pairs=len(both)),
    [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{len(names)} pairs"] * (session.limit is not None), PAPER_AMSTERTIME,
    {"amstertime.png": picture})


def _rows(queries, database, ranks, right) -> np.ndarray:
  """Rows of a query and what was found first, framed in green where it is right, else in red."""
  def tile(path, colour):
    image = decode(path, path)
    look = np.full((104, 104, 3), colour, np.uint8)
    scale = 96 / max(image.shape[:2])
    height, width = (max(int(side * scale), 1) for side in image.shape[:2])
    look[4:4 + height, 4:4 + width] = resize(image, height, width)
    return look

  rows = []
  for i in np.linspace(0, len(queries) - 1, min(8, len(queries))).astype(int):
    found = ranks[i][:SHOWN]
    cells = [tile(queries[i], (90, 90, 90))] + [
      tile(database[j], (40, 160, 60) if j in right[i] else (200, 50, 40)) for j in found]
    rows.append(cells + [np.full((104, 104, 3), 255, np.uint8)] * (1 + SHOWN - len(cells)))
  return grid(rows, columns=1)
