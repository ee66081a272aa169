r"""DINOv3 in JAX. `python -m dinov3_jax COMMAND -h` says more about each of these:

  main       train, or go on training
  features   write the features of images into a file
  visualize  draw what a model sees in an image
  export     write a model in a format that others read
  report     the k-NN accuracy that a run has reached
  curate     make a training set of a heap of images
  pack       write any source of images as a few files that are read fast
  evaluate   measure frozen features by the protocols of the paper
  aot        compile the training step for a TPU topology

`python -m dinov3_jax.COMMAND` is the same.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import re
import runpy
import sys

from dinov3_jax import __version__

COMMANDS = tuple(re.findall(r"^  (\w+)  +", __doc__, re.MULTILINE))


def main(argv: list[str]) -> int:
  """Runs the command that the first argument names, or lists them; returns the exit code."""
  command = argv[1] if len(argv) > 1 else "-h"
  if command in COMMANDS:
    del argv[1]
    runpy.run_module(f"dinov3_jax.{command}", run_name="__main__", alter_sys=True)
    return 0
  if command == "--version":
    print(f"dinov3_jax {__version__}")
    return 0
  if command in ("-h", "--help"):
    print(__doc__)
    return 0
  print(f"error: there is no command {command}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv))
