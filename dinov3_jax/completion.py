"""What completes the commands on the Tab key, for the user's shell."""

import importlib
import sys
from argparse import ArgumentParser

import shtab

from dinov3_jax import __version__, arguments

SHELLS = ("bash", "zsh", "tcsh")


def parser() -> ArgumentParser:
  """The command line of `dinov3` as a whole: a subparser for each command."""
  with arguments.called_as("dinov3 "):
    return _parser()


def _parser() -> ArgumentParser:
  from dinov3_jax.__main__ import COMMANDS, MODULES
  whole = ArgumentParser("dinov3")
  whole.add_argument("--version", action="version", version=__version__)
  verbs = whole.add_subparsers()
  for command, what in COMMANDS.items():
    made = importlib.import_module(f"dinov3_jax.{MODULES.get(command, command)}").parser()
    if command in ("train", "aot"):
      _add_settings(made)
    verbs.add_parser(command, parents=[made], add_help=False, help=what)
  last = verbs.add_parser("completion", help="print what completes these")
  last.add_argument("shell", choices=SHELLS)
  return whole


def _add_settings(parser: ArgumentParser):
  """Every setting of `configs/base.py` as an option of its own."""
  from dinov3_jax import recipes
  keys = recipes.keys(recipes.load("base"))
  for key in keys:
    if not any(other.startswith(f"{key}.") for other in keys):  # a section takes no value
      parser.add_argument(f"--config.{key}")


def main(argv: list[str]) -> int:
  """Prints the script for a shell; returns the exit code."""
  if len(argv) != 1 or argv[0] not in SHELLS:
    print(f"error: give one shell: dinov3 completion {'|'.join(SHELLS)}", file=sys.stderr)
    return 2
  print(shtab.complete(parser(), shell=argv[0]))
  return 0
