r"""Writes a model in a format that others read.

  python -m dinov3_jax.export WEIGHTS --format hf|official|safetensors --out DIR
  python -m dinov3_jax.export WEIGHTS --format hf --out DIR --push OWNER/NAME --licence apache-2.0

WEIGHTS is whatever `dinov3_jax.load` takes, above all a run's folder. The formats:
  hf           a folder for `transformers.AutoModel.from_pretrained`
  official     a .pth file with the reference's names, as its hub has them; takes PyTorch
  safetensors  the same arrays in a safetensors file
The first two have no place for a convolutional stem (`model.stem="conv"`, as the quickstart has):
take safetensors for it. The size, mean and deviation of the images that the model was trained with
go into `preprocessor_config.json`. Of a run that has aligned text, official and safetensors write
vision head and text tower, as the released file has them.

Everything is float32 and exact. As in the reference's own releases, RoPE turns in float32 there,
even if it was trained in bfloat16. Hugging Face has no place for the norm that local crops may have
of their own, which only training uses, nor for biases of keys that the model masks.

--push sends the folder to the Hugging Face hub, with a model card: the data, the curve, the figures
of `--results`, and how to load the model. Log in with `hf auth login` first.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import argparse
import os
import sys

from dinov3_jax import arguments
from dinov3_jax.callable_module import make_callable
from dinov3_jax.main import fail

if __name__ != "__main__":
  make_callable(__name__, "dinov3_jax.weights.exporting", "export")


def __getattr__(name: str):
  if name == "export":
    from dinov3_jax.weights.exporting import export
    return export
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parser() -> arguments.Parser:
  """The command line."""
  made = arguments.Parser("export", __doc__)
  add = made.add_argument_group("the model").add_argument
  add("positional", metavar="WEIGHTS", nargs="?", help="a run's folder, or any other weights")
  add("--weights", metavar="W", help="the same thing as a flag")
  add("--model", metavar="NAME", help="which model it is, where the weights do not say so")
  add("--name", dest="model", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # its former name
  add("--network", choices=["teacher", "student"], default="teacher",
      help="of a run; the teacher by default")
  add = made.add_argument_group("what comes out").add_argument
  add("--format", choices=["hf", "official", "safetensors"], required=True)
  add("--out", metavar="DIR", required=True, type=os.path.expanduser, help="a new folder")
  add("--heads", action="store_true", help="write the heads of DINO and iBOT, too")
  add = made.add_argument_group("to the Hugging Face hub").add_argument
  add("--push", metavar="OWNER/NAME", help="the repository, made if there is none")
  add("--licence", "--license", metavar="ID",
      help="of these weights, such as apache-2.0; weights made of others are under theirs")
  add("--private", action="store_true", help="if the repository is made now")
  add("--results", metavar="FILE", type=os.path.expanduser,
      help="a results.json of `evaluate`, for the card")
  return made


def main() -> int:
  command = parser()
  args = command.parse_args()
  if (args.positional is None) == (args.weights is None):
    command.error("give the weights once, as WEIGHTS or as --weights W")

  if bool(args.push) != bool(args.licence):
    command.error("--push needs the --licence of the weights, and the other way round")
  if (args.private or args.results) and not args.push:
    command.error("--private and --results go with --push")

  # Not before the command line is known to be right: it takes seconds.
  from dinov3_jax.text.loading import export_text, is_text_run
  from dinov3_jax.weights.exporting import export
  from dinov3_jax.weights.publishing import publish

  weights = args.weights if args.positional is None else args.positional
  how = dict(name=args.model, network=args.network, heads=args.heads)
  try:
    if is_text_run(weights):
      if args.push:
        raise ValueError("--push is for backbones: export this run, and send the folder with "
                         "`hf upload`")
      written = export_text(weights, args.format, args.out)
    elif args.push:
      written = [publish(weights, args.format, args.out, args.push, licence=args.licence,
                         private=args.private, results=args.results, **how)]
    else:
      written = export(weights, args.format, args.out, **how)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  for path in written:
    print(path)
  return 0


if __name__ == "__main__":
  sys.exit(main())
