r"""DINOv3 in JAX. `dinov3 COMMAND -h` says more about each of these:

  train      train, or go on training
  features   write the features of images into a file
  visualize  draw what a model sees in an image
  export     write a model in a format that others read
  report     the k-NN accuracy that a run has reached
  curate     make a training set of a heap of images
  pack       write any source of images as a few files that are read fast
  evaluate   measure frozen features by the protocols of the paper
  aot        compile the training step for a TPU topology

  completion bash|zsh|tcsh
             print what completes these on the Tab key: eval "$(dinov3 completion bash)"

`python -m dinov3_jax.COMMAND` is the same, and `python -m dinov3_jax COMMAND`.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import re
import runpy
import sys

from dinov3_jax import __version__, arguments, signals

COMMANDS = dict(re.findall(r"^  (\w+)  +(.+)", __doc__, re.MULTILINE))
MODULES = {verb: name for name, verb in arguments.VERBS.items()}


def main(argv: list[str], caller: str = "python -m dinov3_jax ") -> int:
  """Runs the command that the first argument names, or lists them.

  Args:
    argv: the command line, as `sys.argv`.
    caller: what is written before a command in the texts that it prints.

  Returns:
    The exit code.
  """
  command = argv[1] if len(argv) > 1 else "-h"
  if command in COMMANDS or command in arguments.VERBS:
    del argv[1]
    with arguments.called_as(caller):
      runpy.run_module(f"dinov3_jax.{MODULES.get(command, command)}", run_name="__main__",
                       alter_sys=True)
    return 0
  if command == "completion":
    from dinov3_jax import completion
    return completion.main(argv[2:])
  if command == "--version":
    print(f"dinov3_jax {__version__}")
    return 0
  if command in ("-h", "--help"):
    print(__doc__)
    return 0
  print(f"error: there is no command {command}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
  return 2


def console() -> int:
  """The console script `dinov3`."""
  signals.exit_at_once()
  return main(sys.argv, "dinov3 ")


if __name__ == "__main__":
  sys.exit(main(sys.argv))
