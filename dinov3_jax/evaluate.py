r"""Evaluates frozen features by the protocols of the paper.

  python -m dinov3_jax.evaluate TASK [TASK ...] --weights W --data DIR [--out DIR]

W is whatever `dinov3_jax.load` takes, or `random` for an untrained network; for the tasks of text
whatever `dinov3_jax.load_text` takes. --data is the folder of the task's data set, in the layout in
which people download it (for knn, linear and logistic also tars, zips, parquet, ArrayRecord or
tfds:NAME with labels, see docs/data.md):

{tasks}

Each task prints a table of our figures, those of the paper for the same model (if --model names
it), and what is not as in the paper. --out gets `results.json` and pictures in a folder a task.
Features are kept in --cache; the same command goes on where it was stopped.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dinov3_jax import __version__, arguments, console, signals
from dinov3_jax.callable_module import make_callable
from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.main import fail

if TYPE_CHECKING:  # slow to import
  from dinov3_jax.evals.session import Result

if __name__ != "__main__":
  make_callable(__name__, __name__, "evaluate")

log = logging.getLogger(__name__)


def describe() -> str:
  """The tasks by group, and the folder that each wants."""
  lines, width = [], max(map(len, TASKS))
  for group in dict.fromkeys(task.group for task in TASKS.values()):
    lines.append(f"  {group}")
    lines += [f"    {name:{width}}  {task.layout}" for name, task in TASKS.items()
              if task.group == group]
  return "\n".join(lines)


def parser() -> arguments.Parser:
  """The command line."""
  result = arguments.Parser("evaluate", __doc__.format(tasks=describe()))
  result.add_argument("tasks", metavar="TASK", nargs="+", choices=list(TASKS), help="see above")
  arguments.add_model(result)
  add = result.add_argument_group("where things lie").add_argument
  add("--data", metavar="DIR", required=True, type=os.path.expanduser)
  add("--out", metavar="DIR", type=os.path.expanduser, help="for results.json and pictures")
  add("--cache", metavar="DIR", type=os.path.expanduser,
      help="for features; by default OUT/features, or ~/.cache/dinov3_jax/features without --out")
  add = result.add_argument_group("what a task does otherwise than in its protocol").add_argument
  add("--size", type=int, metavar="PIXELS",
      help="of images (frames: their short side), instead of each task's own")
  add("--limit", type=int, metavar="N", help="so many images, videos or pairs of a split")
  add("--steps", type=int, metavar="N", help="of trained probes, instead of each task's own")
  add("--set", metavar="NAME=VALUE", action="append", default=[], dest="settings",
      help="an option of a task, such as frames=8 of actions; docs/evaluation.md lists them")
  add("--batch-size", type=int, default=32, metavar="IMAGES", help="at once; 32 by default")
  return result


def table(name: str, result, model: str | None) -> str:
  """A task's figures beside the paper's, and what differs from its protocol."""
  paper = result.paper.get(model, {}) if model else {}
  width = max(len(key) for key in result.figures)
  lines = [f"{name:{width}}  {'ours':>7}" + (f"  {'paper':>7}" if paper else "")]
  for key, value in result.figures.items():
    lines.append(f"{key:{width}}  {value:7.2f}" + (f"  {paper[key]:7.1f}" if key in paper else ""))
  return "\n".join(lines + [f"  not as in the paper: {what}" for what in result.differs])


def evaluate(tasks: str | Iterable[str], weights: str | os.PathLike, data: str | os.PathLike, *,
             progress: bool = False, **how) -> "dict[str, Result]":
  """Evaluates frozen features by the protocols of the paper, on all devices there are.

  Args:
    tasks: one or several of `dinov3_jax.evals.catalogue.TASKS`, such as ["knn", "linear"].
    weights: as for `dinov3_jax.load`, or "random" for an untrained network; for tasks of text as
      for `dinov3_jax.load_text`.
    data: the folder of the tasks' data set, in the layout in which people download it.
    progress: show bars on the standard error stream.
    **how: as for `results`, such as `model="vits16"`, `out="results"` or `limit=1000`.

  Returns:
    By task, its `figures`, `protocol`, the `paper`'s figures, what `differs` and `pictures`. A
    damaged image is left out, and the log says so.

  Raises:
    ValueError: an unknown task, data that are laid out otherwise, and what `dinov3_jax.load`
      raises.
    OSError: files that cannot be read or written.
  """
  found = {}
  for name, result, left_out in results([tasks] if isinstance(tasks, str) else list(tasks), weights,
                                        data, progress=progress, **how):
    found[name] = result
    for damaged, reason in left_out.items():
      log.warning("left out: %s: %s", damaged, reason)
  return found


def results(tasks: Sequence[str], weights: str | os.PathLike, data: str | os.PathLike, *,
            model: str | None = None, out: str | os.PathLike | None = None,
            cache: str | os.PathLike | None = None, size: int | None = None,
            limit: int | None = None, steps: int | None = None, batch_size: int = 32,
            dtype: str | None = None, settings: Mapping[str, str] | None = None,
            progress: bool = False,
            stop: Callable[[], object] = lambda: False
            ) -> "Iterator[tuple[str, Result, dict[str, str]]]":
  """Evaluates one task after the other.

  Args:
    tasks, weights, data, progress: as for `evaluate`.
    model: which one it is, where the weights do not say so; the paper's figures are then shown.
    out: a folder for results.json and pictures.
    cache: a folder for features, which later calls use again; None: `out`/features, or
      ~/.cache/dinov3_jax/features.
    size: of images in pixels (of frames, their short side), instead of each task's own.
    limit: so many images, videos or pairs of a split.
    steps: of trained probes, instead of each task's own.
    batch_size: images at once.
    dtype: of the computation, "float32" or "bfloat16"; None: the latter on accelerators.
    settings: options of tasks, such as {"frames": "8"}; docs/evaluation.md lists them.
    stop: asked between batches whether to stop.

  Yields:
    A task, what it found, and why images were left out, by name.

  Raises:
    Stopped: `stop` said so; else as `evaluate`.
  """
  import jax

  from dinov3_jax.data.sources import is_spec
  from dinov3_jax.data.walk import printable
  from dinov3_jax.evals import drawing
  from dinov3_jax.evals.backbone import open_on_all_devices
  from dinov3_jax.evals.session import Session
  for name in tasks:
    if name not in TASKS:
      raise ValueError(f"there is no task {name}: take one of {', '.join(TASKS)}")
  known = sorted({option for name in tasks for option in TASKS[name].options})
  if unknown := (settings or {}).keys() - known:
    raise ValueError(f"none of these tasks has the option {', '.join(sorted(unknown))}; there " + (
      f"are {', '.join(known)}" if known else "is none"))
  for name, value in dict(size=size, limit=limit, steps=steps, batch_size=batch_size).items():
    if value is not None and value < 1:
      raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
  spec, out = os.path.expanduser(data), out and pathlib.Path(out).expanduser()
  data = pathlib.Path(spec)
  if not data.is_dir() and not is_spec(spec):
    raise ValueError(f"--data {printable(spec)} is no folder")
  if out:
    out.mkdir(parents=True, exist_ok=True)
  cache = pathlib.Path(cache or (out / "features" if out else "~/.cache/dinov3_jax/features"))
  of_text = {TASKS[name].text for name in tasks}
  if len(of_text) > 1:
    raise ValueError("tasks of text take other weights than the rest: evaluate them apart")
  shown = printable(spec if is_spec(spec) else data)
  written = _read(out / "results.json") if out else {}
  for name in tasks:
    before = written.get(name)
    other = before.get("data") if isinstance(before, dict) else None
    if isinstance(other, str) and os.path.realpath(other) != os.path.realpath(shown):
      raise ValueError(f"{out / 'results.json'} has {name} of {other}, which that of {shown} would "
                       "replace: choose another --out")
  network, prepare = open_on_all_devices(weights, model, None, dtype, text=of_text == {True})
  session = Session(network, prepare, data, cache.expanduser(), size, limit, steps, batch_size,
                    progress=progress, stop=stop, settings=settings or {},
                    spec=spec if is_spec(spec) else "")
  for name in tasks:
    result = TASKS[name](session)
    if out:
      for file, picture in result.pictures.items():
        drawing.write(out / name / file, picture)
      written[name] = dict(
          figures=result.figures, protocol=result.protocol, not_as_in_the_paper=result.differs,
          left_out=dict(session.left_out), weights=printable(os.fspath(weights)), model=model,
          digest=session.digest, dtype=dtype, data=shown,
          versions=dict(dinov3_jax=__version__, jax=jax.__version__))
      _write(out / "results.json", written)
    yield name, result, dict(session.left_out)
    session.left_out.clear()


def main() -> int:
  args = vars(parser().parse_intermixed_args())
  wrong = [item for item in args["settings"] if "=" not in item]
  args["settings"] = dict(item.split("=", 1) for item in args["settings"] if item not in wrong)
  console.set_up(logging.WARNING)

  # Not before the command line is known to be right: it takes seconds.
  import jax

  from dinov3_jax.data.decode import DamagedImage
  from dinov3_jax.evals.extraction import Stopped
  from dinov3_jax.train import compiler

  named = args["model"] if args["weights"] != "random" else None
  try:
    if wrong:
      raise ValueError("--set wants NAME=VALUE, such as --set frames=8")
    with signals.Noted(line=None) as stop:
      for name, result, left_out in results(**args, progress=True, stop=lambda: stop.number):
        print(table(name, result, named), flush=True)
        for damaged, reason in left_out.items():
          print(f"left out: {damaged}: {reason}", file=sys.stderr)
  except Stopped:
    with contextlib.suppress(OSError):  # the terminal may be gone
      fail("interrupted; the same command goes on from here")
    return 128 + stop.number
  except (OSError, ValueError, ModuleNotFoundError, DamagedImage) as error:
    return fail(error)
  except jax.errors.JaxRuntimeError as error:
    if not compiler.is_too_large(error):
      raise
    return fail(f"the memory of the device does not suffice ({compiler.reason(error)}): take a "
                "smaller --batch-size or --size")
  return 0


def _read(path: pathlib.Path) -> dict:
  """The results of earlier tasks, which stay in the file beside the new ones."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_text())
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{path} is there already and holds no results: choose another --out")
  return found


def _write(path: pathlib.Path, results: dict):
  new = path.with_name(path.name + ".new")
  new.write_text(json.dumps(results, indent=2))
  new.replace(path)


if __name__ == "__main__":
  sys.exit(main())
