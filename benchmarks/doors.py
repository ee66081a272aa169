"""What newcomers wait for: every way into the package, walked through in a new environment.

  python benchmarks/doors.py --python=python3.12 --folder=doors

Each door is the commands that its page names, in a folder of its own, and what then stands on the
screen; the time runs until it does. Prints a table in Markdown. The folder must not be there yet.
"""

import argparse
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinov3_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PAUSE = 60  # seconds for a command to end after a signal


class Step(NamedTuple):
  """A command of a door.

  Attributes:
    command: as in a terminal.
    shows: a regular expression of what it prints; None: what counts is that it ends.
    says: how the table names what is then there.
    leaves: whether it is stopped then, as a closed terminal would.
  """

  command: str
  says: str = ""
  shows: str | None = None
  leaves: bool = False


class Door(NamedTuple):
  """A way into the package.

  Attributes:
    page: which text names the commands.
    place: the folder, below that of the benchmark, in which they run; doors may share one.
    steps: one after another.
  """

  page: str
  place: str
  steps: tuple[Step, ...]


NEW = "{python} -m venv .venv && . .venv/bin/activate"
IN = ". .venv/bin/activate && "
QUICK = "PYTHON={python} bash launch/quickstart.sh"
PICTURES = 24
DOORS = {
  "checkout": Door("README", "checkout", (
    Step(QUICK, "the first training step, in a new environment", "did the first step", True),
    Step(QUICK, "the table of k-NN accuracies", r"teacher, 800 steps +\d"),
  )),
  "package": Door("docs/start.md, without the checkout", "package", (
    Step(NEW + " && pip install -q '{wheel}[quickstart]'", "the environment"),
    Step(IN + "dinov3", "the list of commands", r"train  "),
    Step(IN + "dinov3 train --config=quickstart --workdir=runs/quickstart",
         "the first training step", "did the first step", True),
  )),
  "Python": Door("README", "package", (
    Step(IN + "python -c \"import dinov3_jax; model = dinov3_jax.load('vits16'); print(model("
         "dinov3_jax.preprocess('vits16')('{picture}')[None])['cls'].shape)\"",
         "features of a picture by a fresh ViT-S/16", r"\(1, 384\)"),
  )),
  "features": Door("README", "package", (
    Step(IN + "dinov3 features {pictures} --weights runs/quickstart --out features.safetensors",
         f"a file with the features of {PICTURES} pictures"),
    Step(IN + "dinov3 visualize {picture} --weights runs/quickstart --size 96",
         "a picture of what the model sees"),
    Step(IN + "dinov3 export runs/quickstart --format safetensors --out exported",
         "the weights in a file for others"),
  )),
  "evaluate": Door("README", "package", (
    Step(IN + "dinov3 evaluate knn --weights runs/quickstart --data {pictures}",
         "the k-NN accuracy"),
  )),
  "notebook": Door("docs/start.md", "package", (
    Step(IN + "pip install -q '{wheel}[quickstart,notebooks]' nbclient", "the libraries"),
    Step(IN + "cp {root}/notebooks/features.ipynb . && jupyter execute features.ipynb",
         "features.ipynb from top to bottom"),
  )),
  "site": Door("CONTRIBUTING.md", "checkout", (
    Step(IN + "pip install -q -e .[docs]", "the libraries"),
    Step(IN + "sphinx-build -qW docs build/site", "the site"),
  )),
}


def run(step: Step, place: pathlib.Path, values: dict[str, object]) -> float:
  """Seconds until a step shows what it should.

  Args:
    step: of a door.
    place: the folder in which it runs; a file `log` in it takes what is printed.
    values: of the names in the command.

  Raises:
    RuntimeError: it never does, or fails.
  """
  log = place / "log"
  begin = time.perf_counter()
  process = subprocess.Popen(["bash", "-c", step.command.format(**values)], cwd=place, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True, env=environment(place / ".cache"))
  seconds = None
  with log.open("a") as file:
    file.write(f"$ {step.command}\n")
    for line in process.stdout:
      file.write(line)
      if seconds is None and step.shows and re.search(step.shows, line):
        seconds = time.perf_counter() - begin
        if step.leaves:
          os.killpg(process.pid, signal.SIGTERM)
          threading.Timer(PAUSE, lambda: os.killpg(process.pid, signal.SIGKILL)).start()
  code = process.wait()
  if step.shows is None:
    seconds = time.perf_counter() - begin
  if seconds is None or (code and not step.leaves):
    raise RuntimeError(f"{step.command} ended with {code}, see {log}")
  return seconds


def environment(cache: pathlib.Path) -> dict[str, str]:
  """That of someone who has just opened a terminal: no package of ours, and caches of its own, in
  which nothing is compiled or downloaded at first."""
  ours = ("PYTHON", "JAX_", "XLA_", "VIRTUAL_ENV")
  kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
  return kept | dict(XDG_CACHE_HOME=str(cache))


def make_place(folder: pathlib.Path, python: str) -> dict[str, object]:
  """What the doors start from: a clone, a wheel and pictures; the values of the commands."""
  subprocess.run(["git", "clone", "--quiet", ROOT, folder / "checkout"], check=True)
  subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder,
                  folder / "checkout"], check=True, stdout=subprocess.DEVNULL)
  (folder / "package").mkdir()
  pictures, rng = folder / "pictures", np.random.default_rng(0)
  for i in range(PICTURES):
    place = pictures / ("train", "val")[i % 2] / "ab"[i // 2 % 2]
    place.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((640, 480))
    image.save(place / f"{i}.jpg")
  wheel, = folder.glob("*.whl")
  return dict(python=python, wheel=wheel, root=ROOT, pictures=pictures,
              picture=pictures / "train" / "a" / "0.jpg")


def quick(command: str, place: pathlib.Path) -> float:
  """Seconds of a command, the median of five runs after one that fills the caches."""
  seconds = [run(Step(IN + command), place, {}) for _ in range(6)]
  return statistics.median(seconds[1:])


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--python", default=sys.executable, help="makes the environments")
  parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS),
                      help="which of them; all by default, of which some need earlier ones")
  parser.add_argument("--folder", required=True, type=pathlib.Path, help="of the benchmark; new")
  args = parser.parse_args()
  folder = args.folder.absolute()
  folder.mkdir()
  values = make_place(folder, args.python)
  print("| door | commands | what then is there | seconds | since the first command |")
  print("|---|---|---|---|---|", flush=True)
  for name in args.doors:
    door, total = DOORS[name], 0
    for n, step in enumerate(door.steps, 1):
      seconds = run(step, folder / door.place, values)
      total += seconds
      print(f"| {name} | {n} | {step.says} | {seconds:.0f} | {total:.0f} |", flush=True)
  print("\n| command | seconds |\n|---|---|")
  place = folder / "package"
  for command in ("python -c ''", "python -c 'import dinov3_jax'", "dinov3",
                  *(f"dinov3 {name} --help" for name in COMMANDS)):
    print(f"| `{command}` | {quick(command, place):.2f} |", flush=True)


if __name__ == "__main__":
  main()
