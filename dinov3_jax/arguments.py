"""What the command lines of several commands share. It imports nothing that is slow."""

import argparse
import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dinov3_jax

if TYPE_CHECKING:
  from absl import flags

MODULE = "python -m dinov3_jax."
VERBS = {"main": "train"}  # of the console script, where they are not the module's name
REQUIRED = ("config", "workdir", "topology")  # of absl's flags
_caller = MODULE


@contextlib.contextmanager
def called_as(caller: str) -> Iterator[None]:
  """In the block, texts spell commands as they are called: `caller`, such as "dinov3 ", and a verb.
  """
  global _caller
  before, _caller = _caller, caller
  try:
    yield
  finally:
    _caller = before


def spelled(text: str) -> str:
  """A text with the commands in it, `python -m dinov3_jax.NAME`, as the running one was called."""
  if _caller == MODULE:
    return text
  return re.sub(re.escape(MODULE) + r"(\w+)", lambda found: _caller + VERBS.get(found[1], found[1]),
                text)


class Parser(argparse.ArgumentParser):
  """The arguments of `python -m dinov3_jax.NAME`, with --help and --version."""

  def __init__(self, name: str, description: str):
    super().__init__(prog=spelled(MODULE + name), description=spelled(description),
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    self.add_argument("--version", action="version",
                      version=f"dinov3_jax {dinov3_jax.__version__}")


def add_flags(parser: Parser, title: str, values: "flags.FlagValues", **metavars: str | None):
  """A group of absl's flags in a parser that shows them: absl still parses them.

  Args:
    parser: what is added to.
    title: of the group.
    values: the flags.
    metavars: by name of the flag, what stands for its value; None for a flag without one.
  """
  group = parser.add_argument_group(title)
  for name, metavar in metavars.items():
    kind = dict(action="store_true") if metavar is None else dict(
        metavar=metavar, required=name in REQUIRED)
    group.add_argument(f"--{name}", help=values[name].help, **kind)


def add_model(parser: argparse.ArgumentParser):
  """The flags of `dinov3_jax.evals.backbone.open_model`."""
  add = parser.add_argument_group("the model").add_argument
  add("--weights", metavar="W", required=True, type=os.path.expanduser,
      help="a run's folder, a file, a name; see above")
  add("--model", metavar="NAME", help="which model it is, where the weights do not say so")
  add("--dtype", choices=["float32", "bfloat16"],
      help="of the computation; by default bfloat16 on accelerators, float32 on CPUs")


def size(text: str) -> int | tuple[int, int]:
  """224 or 480,640 (height, width).

  Raises:
    argparse.ArgumentTypeError: neither.
  """
  if not re.fullmatch(r"0*[1-9][0-9]*(,0*[1-9][0-9]*)?", text):
    raise argparse.ArgumentTypeError(f"a size is one number or HEIGHT,WIDTH, not {text}")
  sides = tuple(map(int, text.split(",")))
  return sides if len(sides) == 2 else sides[0]


def patch(text: str) -> tuple[int, int]:
  """20,31: the ROW,COLUMN of a patch.

  Raises:
    argparse.ArgumentTypeError: none.
  """
  if not re.fullmatch(r"[0-9]+,[0-9]+", text):
    raise argparse.ArgumentTypeError(f"a patch is ROW,COLUMN, counted from 0, not {text}")
  row, column = map(int, text.split(","))
  return row, column
