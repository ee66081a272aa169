"""Tasks of `python -m dinov3_jax.evaluate` on the teacher, beside training."""

import logging
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals import drawing, mini
from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.evals.mini_plan import PLANS
from dinov3_jax.evals.session import Result, Session
from dinov3_jax.train.state import TrainState, abstract_modules

log = logging.getLogger(__name__)


def split(entry: str) -> tuple[str, str]:
  """The task and the folder of an entry of `config.evals.tasks`: "knn", or "knn=/data/imagenet".

  Raises:
    ValueError: an unknown task; a folder that is not there; no folder, and no small data either.
  """
  name, _, folder = str(entry).partition("=")
  if name not in TASKS:
    raise ValueError(f"evals.tasks has {name!r}: take some of {', '.join(TASKS)}")
  if folder and not pathlib.Path(folder).expanduser().is_dir():
    raise ValueError(f"evals.tasks has {entry!r}, but there is no folder {folder}")
  if not folder and name not in {plan.task for plan in PLANS}:
    raise ValueError(f"evals.tasks has {name!r} without its data: write {name}=FOLDER")
  return name, folder


class Tasks:
  """Every `config.evals.every` steps and after the last, `config.evals.tasks` on the teacher.

  An entry NAME=FOLDER runs by its protocol on the data in the folder; NAME alone on the small data
  that `python -m dinov3_jax.evals.mini` writes, at their sizes. Figures are called
  `tasks/NAME/FIGURE`, and pictures lie in `pictures/tasks/NAME/step_*`.

  A process of several evaluates alone, on its own devices, with a copy of the teacher.
  """

  def __init__(self, config, workdir: epath.Path, mesh: Mesh, done: int | None = None):
    """Args:
      config: of the run.
      workdir: its folder.
      mesh: of the devices.
      done: the step whose figures are known already, from before a restart.

    Raises:
      ValueError: entries of `config.evals.tasks` that `split` refuses.
    """
    self._entries = [split(entry) for entry in config.evals.tasks]
    self._every, self._last, self._done = config.evals.every, config.train.steps, done
    self._pictures, self._limit = workdir / "pictures" / "tasks", config.evals.task_limit or None
    self._graph = abstract_modules(config)[0]["backbone"]
    self._dtype, self._alone = jnp.dtype(config.train.dtype), jax.process_count() > 1
    self._prepare = Preprocess(tuple(config.crops.mean), tuple(config.crops.std),
                               config.evals.image_size)
    self._first = jax.process_index() == 0
    self._scratch = tempfile.TemporaryDirectory(prefix="dinov3_jax-tasks-")

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if step == self._done or (step % self._every and step != self._last):
      return
    params = state.teacher["backbone"]
    if self._alone:
      params = multihost_utils.process_allgather(params, tiled=True)
    if not self._first:
      return
    model = nnx.merge(self._graph, jax.tree.map(lambda x: jnp.asarray(x, self._dtype), params))
    with tempfile.TemporaryDirectory(dir=self._scratch.name) as cache:
      session = Session(model, self._prepare, pathlib.Path(), pathlib.Path(cache),
                        limit=self._limit)
      for name, folder in self._entries:
        self._run(session, name, folder, step, metrics)

  def close(self):
    self._scratch.cleanup()

  def _run(self, session: Session, name: str, folder: str, step: int, metrics):
    """One that fails is told of and left out; the others have their turn."""
    try:
      if folder:
        session.data = pathlib.Path(folder).expanduser()
        results = {name: TASKS[name](session)}
      else:
        plans = [plan for plan in PLANS if plan.task == name]
        results = {name if len(plans) == 1 else f"{name}/{plan.data}":
                   plan.run(session, self._small(plan.data)) for plan in plans}
    except (ValueError, OSError, ModuleNotFoundError) as error:
      log.warning("the task %s failed at step %d (%s); training goes on", name, step,
                  " ".join(str(error).split())[:200])
      return
    for label, result in results.items():
      self._keep(label, result, step, metrics)

  def _keep(self, label: str, result: Result, step: int, metrics):
    for figure, value in result.figures.items():
      metrics[f"tasks/{label}/{figure}"] = float(value)
    for file, picture in result.pictures.items():
      drawing.write(self._pictures / label / f"step_{step:07d}" / file, picture)

  def _small(self, name: str) -> pathlib.Path:
    """The folder of the small data, with this set in it, which is written when it is needed."""
    root = pathlib.Path(self._scratch.name)
    if not (root / name).exists():
      mini.write(root, sets=[name], beside=True)
    return root
