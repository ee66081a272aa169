"""What the command lines of several commands share. It imports nothing that is slow."""

import argparse
import os
import re

import dinov3_jax


class Parser(argparse.ArgumentParser):
  """The arguments of `python -m dinov3_jax.NAME`, with --help and --version."""

  def __init__(self, name: str, description: str):
    super().__init__(prog=f"python -m dinov3_jax.{name}", description=description,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    self.add_argument("--version", action="version",
                      version=f"dinov3_jax {dinov3_jax.__version__}")


def add_model(parser: argparse.ArgumentParser):
  """The flags of `dinov3_jax.evals.backbone.open_model`."""
  add = parser.add_argument
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
