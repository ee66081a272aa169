"""Trains a model, or goes on training one.

  python -m dinov3_jax.main --config=configs/quickstart.py --workdir=DIR
  python -m dinov3_jax.main --config=vits16 --workdir=DIR --config.data.source=/path/to/images

Any setting can be changed on the command line (`--config.train.batch_size=64`); configs/base.py
has all of them and says what they mean. The same command again goes on from the newest checkpoint
in the workdir. `--profile=20` traces the steps from the 20th on into DIR/profile.

On several hosts every process runs the same command with `--distributed`, which finds the others
in a TPU pod, on GKE and under Slurm. Elsewhere the variables JAX_COORDINATOR_ADDRESS
(HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. All must see the same workdir.

Ctrl-C, SIGTERM and SIGHUP save and stop; the exit code is then 128 + the signal's number.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once("interrupted before the first step")

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from dinov3_jax import __version__, arguments, console, recipes

if TYPE_CHECKING:
  from dinov3_jax.train.state import TrainState


def train(config: ConfigDict | str | os.PathLike, workdir: str | os.PathLike,
          settings: Mapping[str, Any] | None = None, *, profile: int = 0
          ) -> "TrainState | dict[str, TrainState]":
  """Trains, or goes on where the run in `workdir` left off, on all devices there are.

  In a notebook a figure shows the loss, the accuracy and the newest picture as they come; elsewhere
  there are a bar or lines. Interrupting it saves the state, and the same call goes on from there.

  Args:
    config: all settings; or a recipe's file, or the name of one of this project, as "quickstart".
    workdir: the run's folder; `~` is one's home.
    settings: what to change, such as {"train.steps": 100, "data.source": "photos"}.
    profile: the first step to trace; 0: none.

  Returns:
    The last state; of several students, those of all of them by name.

  Raises:
    ValueError: settings that do not exist or do not fit together, or a source that cannot be
      opened.
    TypeError: a setting of the wrong kind.
    OSError: a workdir that cannot be written, or that another process trains in.
    FloatingPointError: too many steps in a row were not finite.
    TooManyDamaged: images that cannot be read.
  """
  from dinov3_jax.train import loop  # takes seconds
  if not isinstance(config, ConfigDict):
    config = recipes.load(config, settings)
  elif settings:
    config = recipes.changed(config, settings)
  return loop.train(config, os.fspath(workdir), profile, preparing(config))


class UsageError(Exception):
  """A command line that cannot be obeyed; says what to do."""


def define() -> flags.FlagValues:
  """The flags of the command, without values."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "a recipe: a file, or the name of one of this "
                                  f"project: {', '.join(recipes.names())}", flag_values=values)
  flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
  flags.DEFINE_integer("profile", 0, "the first step to trace; 0: none", 0, flag_values=values)
  flags.DEFINE_bool("distributed", False, "look for other processes, see above",
                    flag_values=values)
  return values


def parser() -> arguments.Parser:
  """What shows the flags; `parse` reads them."""
  made, values = arguments.Parser("main", __doc__), define()
  arguments.add_flags(made, "the run", values, config="RECIPE", workdir="DIR")
  made.add_argument("--config.KEY", metavar="VALUE", help="any setting of the recipe")
  arguments.add_flags(made, "how it runs", values, distributed=None, profile="STEP")
  return made


def parse(argv: list[str]) -> flags.FlagValues:
  """The flags: config with its overrides, workdir, profile (the first step, 0: none), distributed.

  Raises:
    UsageError: an unknown flag or setting, a value of the wrong kind, no such config.
  """
  values = define()
  rest = read(values, argv)
  if rest:
    raise UsageError(f"what is {rest[0]}? Give --config=FILE, --workdir=DIR and --config.KEY=VALUE")
  for name in ("config", "workdir"):
    if not values[name].value:
      raise UsageError(f"--{name} is missing: python -m dinov3_jax.main "
                       "--config=configs/quickstart.py --workdir=DIR")
  return values


def read(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Gives the flags, a recipe's `--config` among them, their values; returns what is no flag.

  Raises:
    UsageError: as `parse`.
  """
  try:
    argv = with_found(argv)
    return values(argv)[1:]
  except (flags.Error, TypeError, ValueError) as error:
    raise UsageError(str(error).splitlines()[0]) from error


def with_found(argv: list[str]) -> list[str]:
  """The arguments with the path of the recipe that `--config` names, their settings checked.

  Raises:
    ValueError: no such recipe, or an unknown setting.
  """
  argv = list(argv)
  for i, argument in enumerate(argv):
    match = re.fullmatch(r"(--?config=)(.+)", argument)
    if match:
      argv[i] = match[1] + (path := recipes.find(match[2]))
    elif argument in ("-config", "--config") and i + 1 < len(argv):
      argv[i + 1] = path = recipes.find(argv[i + 1])
    else:
      continue
    known = recipes.keys(recipes.load(path))
    for other in argv:
      if setting := re.match(r"--?config\.([^=\[]+)", other):
        recipes.check_key(setting[1], known)
    break
  return argv


def main() -> int:
  """Runs the command; returns its exit code."""
  if asks_for_help(sys.argv):
    parser().print_help()
    return 0
  if "--version" in sys.argv:
    print(f"dinov3_jax {__version__}")
    return 0
  try:
    values = parse(sys.argv)
  except UsageError as error:
    return fail(error, 2)
  console.set_up()

  import jax  # not before the command line is known to be right: it takes seconds

  from dinov3_jax.data.pipeline import TooManyDamaged
  from dinov3_jax.train import compiler, loop, processes

  try:
    compiler.keep_programs()
    processes.join(values.distributed)
    if jax.process_index():
      console.set_up(logging.WARNING)  # one voice is enough
    run = preparing(values.config)(values.config, values.workdir, values.profile)
  except (ValueError, OSError, ImportError, TooManyDamaged) as error:
    return fail(error)
  try:
    loop.run(run)
  except (FloatingPointError, OSError, TooManyDamaged) as error:
    return fail(error)
  except jax.errors.JaxRuntimeError as error:
    if not compiler.is_too_large(error):
      raise
    return fail(compiler.explain(error))
  return 128 + run.stopped if run.stopped else 0


def preparing(config: ConfigDict) -> Callable:
  """What makes a run of a recipe: of text, if it has a section for that, else of images alone."""
  if "text" in config:
    from dinov3_jax.text.training import prepare_text
    return prepare_text
  from dinov3_jax.train import loop
  return loop.prepare


def asks_for_help(argv: list[str]) -> bool:
  """Whether the arguments ask how the command is used."""
  return any(argument in ("-h", "-help", "--help", "-?") for argument in argv[1:])


def fail(error: Exception | str, code: int = 1) -> int:
  """Prints an error that needs no trace."""
  print(f"error: {arguments.spelled(str(error))}", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main())
