r"""Packs any source of images into ArrayRecord shards, which are opened and read fast.

  python -m dinov3_jax.pack SOURCE --out DIR [--shorter PIXELS] [--quality Q]

SOURCE is whatever `config.data.source` takes: a folder, tars, zips, parquet, a list, a bucket, a
set of TFDS. Training, `features` and `curate` then read DIR in its place: the same images in the
same order and splits, with the same names and labels. --shorter shrinks larger images, which become
JPEGs of --quality; --quality alone re-encodes all that get smaller by it. Images of 16 bits or with
transparency are carried as they are. The same command goes on where it was stopped.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once("interrupted; the same command goes on from here")

import logging
import os
import sys

from dinov3_jax import arguments, console
from dinov3_jax.main import fail

QUALITY = 90  # where --shorter makes JPEGs and nothing else is said


def parser() -> arguments.Parser:
  """The command line."""
  made = arguments.Parser("pack", __doc__)
  add = made.add_argument
  add("source", metavar="SOURCE", help="see above")
  add("--out", metavar="DIR", required=True, type=os.path.expanduser)
  add("--split", choices=["all", "train", "val", "test"], default="all")
  add("--shorter", type=int, default=0, metavar="PIXELS",
      help="what the shorter side of larger images becomes")
  add("--quality", type=int, metavar="Q", help=f"of JPEGs, 1 to 100; {QUALITY} with --shorter")
  add("--images-per-shard", type=int, default=5_000, metavar="N")
  add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
  return made


def main() -> int:
  args = parser().parse_args()
  console.set_up(logging.INFO)

  # Not before the command line is known to be right: it takes seconds.
  from dinov3_jax.data.packing import Encoding, pack
  from dinov3_jax.data.walk import printable
  from dinov3_jax.evals.extraction import bar

  try:
    encoding = Encoding(args.shorter, args.quality if args.quality is not None else QUALITY,
                        args.quality is not None)
    with bar(sys.stderr.isatty()) as shown:
      task = shown.add_task("", total=None)
      result = pack(args.source, args.out, split=args.split, encoding=encoding,
                    images_per_shard=args.images_per_shard, workers=args.workers,
                    progress=lambda done, total: shown.update(task, completed=done, total=total))
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  for name, reason in result.left_out.items():
    print(f"left out: {name}: {reason}", file=sys.stderr)
  share = result.bytes_after / max(result.bytes_before, 1)
  print(f"{printable(args.out)}: {result.images:,} images in {result.shards:,} shards; "
        f"{result.bytes_after / 1e6:,.1f} MB, {share:.0%} of {result.bytes_before / 1e6:,.1f} MB; "
        f"reading one takes {result.ms_after:.2f} ms of CPU, {result.ms_before:.2f} before")
  return 0


if __name__ == "__main__":
  sys.exit(main())
