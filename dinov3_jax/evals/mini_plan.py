"""How each task is run on its small data set, and what its figure is held against."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.evals.session import Result, Session


@dataclasses.dataclass(frozen=True)
class Plan:
  """A task on a small data set.

  Attributes:
    task: of `TASKS`.
    data: folder of `mini.SETS`.
    figure: the one that is shown.
    size: of images, in pixels, rounded down to whole patches; None: as the task has it.
    steps: of a trained probe; None: as the task has it.
    settings: as of a `Session`.
    baseline: a figure of the same task that no features are needed for; empty: none.
  """

  task: str
  data: str
  figure: str
  size: int | None = None
  steps: int | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  baseline: str = ""

  def run(self, session: Session, root: pathlib.Path) -> Result:
    """Runs the task with a session's model on the data set in a folder that `mini.write` wrote."""
    size = self.size and max(self.size // session.patch, 1) * session.patch
    return TASKS[self.task](dataclasses.replace(
        session, data=root / self.data, size=size, steps=self.steps, settings=self.settings))


PROBE = dict(frames=6, batch=16, width=48, heads=4, blocks=2, ratio=2)
SHORT = dict(rate_factor=10.0)  # at the protocols' rates so few steps would not get far
COPIED, CONSTANT = "J&F of the first mask, copied", "RMSE of a constant"
PLANS = (
  Plan("tracking", "DAVIS", "J&F", 192, baseline=COPIED),
  Plan("stereo", "Middlebury", "recall at 20 cm, all patches"),
  Plan("depth", "NYUv2", "RMSE", steps=300, settings=SHORT, baseline=CONSTANT),
  Plan("kitti", "KITTI", "RMSE", steps=100, settings=SHORT, baseline=CONSTANT),
  Plan("knn", "folders", "top-1, k = 20", 32),
  Plan("linear", "folders", "top-1", 32),
  Plan("logistic", "folders", "top-1", 32),
  Plan("imagenet", "ImageNet", "val", 64),
  Plan("segmentation", "VOC", "VOC2012 mIoU", 96, 100, SHORT),
  Plan("discovery", "VOC", "VOC2007, best"),
  Plan("oxford", "oxford", "roxford5k easy", 64),
  Plan("amstertime", "AmsterTime", "mAP", 64),
  Plan("met", "Met", "GAP", 64),
  Plan("spair", "SPair-71k", "recall", 128),
  Plan("navi", "NAVI", "recall at 2 cm, cosine", 256),
  Plan("actions", "K400", "K400", 32, 120, PROBE),
  Plan("actions", "SSv2", "SSv2", 32, 120, PROBE),
  Plan("foreground", "foreground", "average precision", 112),
  Plan("pca", "clip", "variance of the components, clip.mp4", 192),
  Plan("tracking", "YouTube-VOS", "J&F", 192, baseline=COPIED),
  Plan("tracking", "MOSE", "J&F", 192, baseline=COPIED),
)
