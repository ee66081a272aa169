r"""Evaluates frozen features by the protocols of the paper.

  python -m dinov3_jax.evaluate TASK [TASK ...] --weights W --data DIR [--out DIR]

W is whatever `dinov3_jax.load` takes, or `random` for an untrained network. --data is the folder of
the task's data set, in the layout in which people download it:

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

from dinov3_jax import __version__, arguments, console, signals
from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.main import fail


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
  add = result.add_argument
  add("tasks", metavar="TASK", nargs="+", choices=TASKS, help="see above")
  arguments.add_model(result)
  add("--data", metavar="DIR", required=True, type=os.path.expanduser)
  add("--out", metavar="DIR", type=os.path.expanduser, help="for results.json and pictures")
  add("--cache", metavar="DIR", type=os.path.expanduser,
      help="for features; by default OUT/features, or ~/.cache/dinov3_jax/features without --out")
  add("--size", type=int, metavar="PIXELS",
      help="of images (frames: their short side), instead of each task's own")
  add("--limit", type=int, metavar="N", help="so many images, videos or pairs of a split")
  add("--steps", type=int, metavar="N", help="of trained probes, instead of each task's own")
  add("--set", metavar="NAME=VALUE", action="append", default=[], dest="settings",
      help="an option of a task, such as frames=8 of actions; docs/evaluation.md lists them")
  add("--batch-size", type=int, default=32, metavar="IMAGES")
  return result


def table(name: str, result, model: str | None) -> str:
  """A task's figures beside the paper's, and what differs from its protocol."""
  paper = result.paper.get(model, {}) if model else {}
  width = max(len(key) for key in result.figures)
  lines = [f"{name:{width}}  {'ours':>7}" + (f"  {'paper':>7}" if paper else "")]
  for key, value in result.figures.items():
    lines.append(f"{key:{width}}  {value:7.2f}" + (f"  {paper[key]:7.1f}" if key in paper else ""))
  return "\n".join(lines + [f"  not as in the paper: {what}" for what in result.differs])


def main() -> int:
  args = parser().parse_intermixed_args()
  console.set_up(logging.WARNING)

  # Not before the command line is known to be right: it takes seconds.
  import jax
  from jax.sharding import AxisType

  from dinov3_jax.data.decode import DamagedImage
  from dinov3_jax.data.walk import printable
  from dinov3_jax.evals import drawing
  from dinov3_jax.evals.backbone import open_model
  from dinov3_jax.evals.extraction import Stopped
  from dinov3_jax.evals.session import Session
  from dinov3_jax.train import compiler

  try:
    for flag in ("size", "limit", "steps", "batch_size"):
      if getattr(args, flag) is not None and getattr(args, flag) < 1:
        raise ValueError(f"--{flag.replace('_', '-')} must be at least 1")
    if not all("=" in item for item in args.settings):
      raise ValueError("--set wants NAME=VALUE, such as --set frames=8")
    settings = dict(item.split("=", 1) for item in args.settings)
    data = pathlib.Path(args.data)
    if not data.is_dir():
      raise ValueError(f"--data {printable(data)} is no folder")
    out = args.out and pathlib.Path(args.out)
    if out:
      out.mkdir(parents=True, exist_ok=True)
    cache = pathlib.Path(args.cache or (out / "features" if out else os.path.expanduser(
        "~/.cache/dinov3_jax/features")))
    devices = jax.local_devices()
    mesh = None if len(devices) == 1 else jax.make_mesh(
        (len(devices), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
    model, prepare = open_model(args.weights, args.model, None, args.dtype, mesh)
    named = args.model if args.weights != "random" else None
    results = _read(out / "results.json") if out else {}
    with signals.Noted(line=None) as stop:
      session = Session(model, prepare, data, cache, args.size, args.limit, args.steps,
                        args.batch_size, progress=True, stop=lambda: stop.number,
                        settings=settings)
      for name in args.tasks:
        result = TASKS[name](session)
        print(table(name, result, named), flush=True)
        for damaged, reason in session.left_out.items():
          print(f"left out: {damaged}: {reason}", file=sys.stderr)
        if out:
          for file, picture in result.pictures.items():
            drawing.write(out / name / file, picture)
          results[name] = dict(
              figures=result.figures, protocol=result.protocol, not_as_in_the_paper=result.differs,
              left_out=dict(session.left_out), weights=printable(args.weights), model=args.model,
              digest=session.digest, dtype=args.dtype, data=printable(data),
              versions=dict(dinov3_jax=__version__, jax=jax.__version__))
          _write(out / "results.json", results)
        session.left_out.clear()
      if settings.keys() - session.asked:
        raise ValueError(f"none of these tasks has the option "
                         f"{', '.join(sorted(settings.keys() - session.asked))}")
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
