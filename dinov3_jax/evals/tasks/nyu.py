"""Linear depth on NYUv2: RMSE in metres."""

from functools import partial

from dinov3_jax.evals import depth, depth_maps
from dinov3_jax.evals.depth_maps import DepthSet, Pairs
from dinov3_jax.evals.session import LayoutError, Result, Session

FARTHEST, UNIT = 10.0, 1000  # metres; the files hold millimetres
EDGES = (45, 472, 43, 608)  # of training images: beyond these rows and columns NYU's are white
CROP = (416, 544)
LAYOUT = ("nyu_train.txt and nyu_test.txt with lines of an image, its depth (16-bit PNG in "
          "millimetres) and a focal length, as BTS and AdaBins pack it")
PAPER = {name: {"RMSE": value} for name, value in dict(  # metres
  vits16=0.403, vits16plus=0.399, vitb16=0.373, vitl16=0.352, vith16plus=0.352, vit7b16=0.309,
  convnext_tiny=0.448, convnext_small=0.432, convnext_base=0.420, convnext_large=0.403).items()}


def run(session: Session) -> Result:
  """The paper's grid of rates and decays; the best probe by the RMSE of the test set."""
  train, test = (read_list(session, f"nyu_{name}.txt") for name in ("train", "test"))
  result = depth_maps.evaluate(session, DepthSet(
    train, test, partial(depth_maps.read_depth, unit=UNIT), FARTHEST, depth.eigen_crop, window))
  result.protocol["region"], result.paper = "Eigen", PAPER
  return result


def window(height: int, width: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
  """Where training crops lie, and their size; scaled from those at 480 x 640."""
  down, across = height / 480, width / 640
  top, bottom, left, right = EDGES
  return ((int(top * down), int(bottom * down), int(left * across), int(right * across)),
          (int(CROP[0] * down), int(CROP[1] * across)))


def read_list(session: Session, name: str) -> Pairs:
  """The images and depth files of a list, sorted.

  Raises:
    LayoutError: a line of another form, or a file that is not there.
  """
  pairs = []
  for line in sorted(session.path(name, LAYOUT).read_text().splitlines()):
    columns = line.split()
    if columns and columns[1:2] != ["None"]:  # images without depth
      if len(columns) < 2:
        raise LayoutError(f"{name} has a line {line!r}: wanted is {LAYOUT}")
      pairs.append(tuple(session.data / column.lstrip("/") for column in columns[:2]))
  for path in (path for pair in pairs for path in pair):
    if not path.exists():
      raise LayoutError(f"{path} is in {name}, but it is not there")
  if not pairs:
    raise LayoutError(f"{name} names no images: wanted is {LAYOUT}")
  return pairs
