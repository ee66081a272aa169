"""Trains a model: `python -m dinov3_jax.main --config=configs/quickstart.py --workdir=DIR`.

Any setting can be changed on the command line (`--config.train.batch_size=64`). The same command
again goes on from the newest checkpoint in the workdir. `--profile=20` traces the steps from the
20th on into DIR/profile.

On several hosts every process runs the same command with `--distributed`, which finds the others
in a TPU pod, on GKE and under Slurm. Elsewhere the variables JAX_COORDINATOR_ADDRESS
(HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. All must see the same workdir.

Ctrl-C, SIGTERM and SIGHUP save and stop; the exit code is then 128 + the signal's number.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once("interrupted before the first step")

import difflib
import logging
import os
import re
import runpy
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from dinov3_jax import __version__, console


class UsageError(Exception):
  """A command line that cannot be obeyed; says what to do."""


def parse(argv: list[str]) -> flags.FlagValues:
  """The flags: config with its overrides, workdir, profile (the first step, 0: none), distributed.

  Raises:
    UsageError: an unknown flag or setting, a value of the wrong kind, no such config.
  """
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=values)
  workdir = flags.DEFINE_string("workdir", None, "The run's folder.", flag_values=values)
  flags.DEFINE_integer("profile", 0, "The first step to trace.", 0, flag_values=values)
  flags.DEFINE_bool("distributed", False, "Look for other processes.", flag_values=values)

  rest = read(values, argv)
  if rest:
    raise UsageError(f"what is {rest[0]}? Give --config=FILE, --workdir=DIR and --config.KEY=VALUE")
  for flag in (config, workdir):
    if not flag.value:
      raise UsageError(f"--{flag.name} is missing: python -m dinov3_jax.main "
                       "--config=configs/quickstart.py --workdir=DIR")
  return values


def read(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Gives the flags, a recipe's `--config` among them, their values; returns what is no flag.

  Raises:
    UsageError: as `parse`.
  """
  path = next((value for flag, value in zip(argv, [*argv[1:], ""]) if flag == "--config"), "")
  path = next((arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")), path)
  if path:
    check_overrides(load_config(path), argv)
  try:
    return values(argv)[1:]
  except (flags.Error, TypeError, ValueError) as error:
    raise UsageError(str(error).splitlines()[0]) from error


def load_config(path: str) -> ConfigDict:
  """What the `get_config` of a config file returns; `path` may be `FILE:ARGUMENT`."""
  file, *argument = path.split(":", 1)
  if not os.path.isfile(file):
    raise UsageError(f"no config file {file}")
  try:
    config = runpy.run_path(file)["get_config"](*argument)
  except Exception as error:
    if argument and isinstance(error, OSError | ValueError):  # of what the recipe was given
      raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    reason = " ".join(str(error.args[0] if error.args else "").split())
    raise UsageError(f"{file} is no valid config: {type(error).__name__}: {reason}") from error
  if not isinstance(config, ConfigDict):
    raise UsageError(f"{file} is no valid config: its get_config returns a "
                     f"{type(config).__name__}, not a ConfigDict as that of configs/base.py")
  return config


def check_overrides(config: ConfigDict, argv: list[str]):
  """Raises a UsageError for the first `--config.KEY` that is no setting."""

  def keys(settings, prefix=""):
    for name, value in settings.items():
      yield prefix + name
      if isinstance(value, dict):
        yield from keys(value, f"{prefix}{name}.")

  known = list(keys(config.to_dict()))
  for arg in argv:
    match = re.match(r"--?config\.([^=\[]+)", arg)
    if match and match[1] not in known:
      key = match[1]
      leaf = lambda name: name.rsplit(".", 1)[-1]
      near = (difflib.get_close_matches(key, known, 2, cutoff=0.75)
              or [name for name in known if leaf(name) == leaf(key)])
      hint = f"; did you mean {' or '.join(near)}?" if near else "; see configs/base.py"
      raise UsageError(f"unknown setting {key}{hint}")


def main() -> int:
  """Runs the command; returns its exit code."""
  if asks_for_help(sys.argv):
    print(f"{__doc__}\nThe settings, and what they mean, are those of configs/base.py.")
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
    run = loop.prepare(values.config, values.workdir, values.profile)
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


def asks_for_help(argv: list[str]) -> bool:
  """Whether the arguments ask how the command is used."""
  return any(argument in ("-h", "-help", "--help", "-?") for argument in argv[1:])


def fail(error: Exception | str, code: int = 1) -> int:
  """Prints an error that needs no trace."""
  print(f"error: {error}", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main())
