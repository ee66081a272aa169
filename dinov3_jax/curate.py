r"""Makes a training set of a heap of images, in steps that share a folder.

  python -m dinov3_jax.curate embed SOURCE --dir DIR --weights W
  python -m dinov3_jax.curate dedup --dir DIR [--against OTHER_DIR]
  python -m dinov3_jax.curate cluster --dir DIR --levels 10000,1000,100 [--of unique]
  python -m dinov3_jax.curate sample --dir DIR --target 100000
  python -m dinov3_jax.curate retrieve --dir DIR --seeds OTHER_DIR
  python -m dinov3_jax.curate mix --dir DIR sample=2 retrieved=1 --homogeneous tfds:imagenet2012=0.1
  python -m dinov3_jax.curate look --dir DIR

SOURCE is what `config.data.source` takes. Each step writes DIR/NAME: the rows it chose, their names
and the counts; `look` makes a page of pictures and DIR/report.md. A step that was stopped, even by
`kill -9`, goes on with the same command. Files that are cut or missing are named and made again.
`python -m dinov3_jax.curate STEP --help` says what a step can be told.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once("interrupted; the same command goes on from here")

import argparse
import contextlib
import logging
import os
import pathlib
import re
import sys

from dinov3_jax import arguments
from dinov3_jax.main import fail


def folder(text: str) -> pathlib.Path:
  """A path; `~` is the home folder."""
  return pathlib.Path(text).expanduser()


def levels(text: str) -> list[tuple[int, int]]:
  """10000,1000,100 or 300x50,1000,100: clusters of each level, and parts of each for two steps.

  Raises:
    argparse.ArgumentTypeError: neither.
  """
  if not re.fullmatch(r"[0-9]+(x[0-9]+)?(,[0-9]+(x[0-9]+)?)*", text):
    raise argparse.ArgumentTypeError(
      f"levels are numbers of clusters from the lowest level to the highest, such as "
      f"10000,1000,100, the first perhaps in two steps, such as 100x100; not {text}")
  return [tuple(map(int, (*level.split("x"), 1)[:2])) for level in text.split(",")]


def weighted(text: str) -> tuple[str, float | None]:
  """WHAT=WEIGHT, or WHAT alone.

  Raises:
    argparse.ArgumentTypeError: a weight that is no number.
  """
  what, _, weight = text.rpartition("=") if "=" in text else (text, "", "")
  try:
    return what, float(weight) if weight else None
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"a part is WHAT=WEIGHT, not {text}") from error


def parser() -> argparse.ArgumentParser:
  """The command line."""
  main = arguments.Parser("curate", __doc__)
  steps = main.add_subparsers(dest="step", metavar="STEP", required=True,
                              parser_class=argparse.ArgumentParser)

  def step(name: str, help: str, result: str | None):
    made = steps.add_parser(name, help=help, description=help)
    made.add_argument("--dir", type=folder, required=True, help="the curation's folder")
    made.add_argument("--distributed", action="store_true",
                      help="one of several processes, as in training; all see DIR")
    if result:
      made.add_argument("--name", default=result, help=f"of the result, {result} by default")
    return made.add_argument, made

  def search(add):
    add("--clusters", metavar="NAME", help="a clustering in whose cells to look for neighbours, "
        "for more than a million images; by default everywhere, exactly")
    add("--probes", type=int, default=8, help="cells to look into, 8 by default")
    add("--recall", type=float, default=1.0, help="below 1, TPUs find this share of the "
        "neighbours faster")

  add, made = step("embed", "Writes the features of a source's images.", None)
  add("source", metavar="SOURCE")
  arguments.add_model(made)
  add("--split", default="all", help="train, val, test or all (default)")
  add("--size", type=arguments.size, metavar="SIDE|HEIGHT,WIDTH", help="of the images, in pixels")
  add("--batch-size", type=int, default=32, metavar="IMAGES")
  add("--shard", type=int, default=2**20, metavar="IMAGES", help="in a file, 1,048,576 by default")

  add, _ = step("cluster", "Clusters features, and clusters of clusters.", "clusters")
  add("--levels", type=levels, required=True, metavar="K,K,...",
      help="clusters from the lowest level to the highest; 100x50 for 100 that are split into 50")
  add("--of", metavar="NAME", help="cluster the rows of this result alone, such as unique")
  add("--rounds", type=int, default=10, help="of resampling, 10 by default")
  add("--keep", type=int, help="rows of each cluster in a round; by default half the mean cluster")
  add("--strategy", choices=["closest", "random"], default="closest", help="which of its rows")
  add("--iterations", type=int, default=50, help="of each k-means, 50 by default")
  add("--seed", type=int, default=0)

  add, _ = step("sample", "Draws a balanced sample down the tree of clusters.", "sample")
  add("--target", type=int, required=True, metavar="IMAGES")
  add("--clusters", default="clusters", metavar="NAME", help="the clustering")
  add("--multiplier", type=int, default=1, help="how often an image may be taken, once by default")
  add("--strategy", choices=["random", "closest"], default="random",
      help="which images of a lowest cluster")
  add("--seed", type=int, default=0)

  add, _ = step("retrieve", "Finds images that are like those of a set.", "retrieved")
  add("--seeds", type=folder, required=True, metavar="DIR", help="with the features of the set")
  add("--k", type=int, default=4, help="neighbours of each image of the set, 4 by default; "
      "0 takes whole clusters, for small sets")
  search(add)
  add("--least", type=int, default=4, help="images of the set for which a cluster is taken")
  add("--per-cluster", type=int, default=10_000, help="images of a cluster at most")
  add("--limit", type=int, default=1_000_000, help="images of all clusters at most")
  add("--seed", type=int, default=0)

  add, _ = step("dedup", "Drops near duplicates, and what resembles an evaluation.", "unique")
  add("--of", metavar="NAME", help="look among the rows of this result alone")
  add("--threshold", type=float, default=0.6, help="of the cosine; 0.6 is for SSCD's features")
  add("--neighbours", type=int, default=64, help="of each image, 64 by default")
  add("--against", type=folder, action="append", default=[], metavar="DIR",
      help="with the features of an evaluation, all of its splits; may be given several times")
  add("--against-threshold", type=float, default=0.45)
  search(add)

  add, _ = step("mix", "Writes parts and weights as what a training reads.", "mix")
  add("parts", type=weighted, nargs="*", metavar="WHAT=WEIGHT",
      help="results of other steps, or sources, and how often an image is drawn from them")
  add("--homogeneous", type=weighted, action="append", default=[], metavar="WHAT=PROBABILITY",
      help="whole batches come from this part, with this probability")
  add("--split", default="train", help="of sources that are parts, train by default")

  add, _ = step("look", "Makes a page of pictures and report.md.", "look")
  add("--level", type=int, default=1, help="of the clusters to show, the lowest by default")
  return main


def alone(at: pathlib.Path) -> contextlib.AbstractContextManager:
  """Keeps a second command out of a result, as long as the first is at it."""
  import jax

  from dinov3_jax.data.lock import FolderLock
  return contextlib.nullcontext() if jax.process_index() else FolderLock(at, "curate")


def embed(args) -> str:
  """Runs `embed`; returns what to print."""
  import jax
  from jax.sharding import AxisType

  from dinov3_jax.curation import disk, results
  from dinov3_jax.curation.embed import embed
  from dinov3_jax.curation.progress import bar
  from dinov3_jax.curation.results import FEATURES
  from dinov3_jax.data.sources import open_source
  from dinov3_jax.evals.backbone import open_model
  if min(args.batch_size, args.shard) < 1:
    raise ValueError("--batch-size and --shard must be at least 1")
  devices = jax.local_devices()
  mesh = None if len(devices) == 1 else jax.make_mesh(
    (len(devices), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
  source = open_source(args.source, args.split)
  model, prepare = open_model(args.weights, args.model, args.size, args.dtype, mesh)
  at = args.dir / FEATURES
  with alone(at), bar() as report:
    store = embed(source, at, model, prepare, spec=args.source, split=args.split,
                  batch_size=args.batch_size, shard_items=args.shard, mesh=mesh, report=report)
    disk.write_text(at / "command.txt", results.command() + "\n")
  damaged = store.damaged()
  for name, reason in damaged.items():
    logging.getLogger(__name__).warning("left out: %s: %s", name, reason)
  return (f"{store.folder}: {store.rows:,} images in {store.shards:,} files, {store.dim} features "
          f"each; {len(damaged):,} images left out")


def run(args) -> str:
  """Runs any step but `embed`; returns what to print."""
  from dinov3_jax.curation import results, steps
  from dinov3_jax.curation.hierarchy import Settings
  from dinov3_jax.curation.progress import bar
  from dinov3_jax.curation.report import write_report
  from dinov3_jax.curation.rows import make_mesh
  results.open_store(args.dir)
  results.check_name(args.name)
  at = args.dir / args.name
  with alone(at), bar(args.step not in ("sample", "mix")) as report:
    if args.step == "cluster":
      r = steps.cluster(args.dir, [
        Settings(k, args.rounds, args.keep, args.strategy, args.iterations, parts)
        for k, parts in args.levels], make_mesh(), name=args.name, of=args.of, seed=args.seed,
        report=report)
      shown = " / ".join(f"{level['clusters']:,}" for level in r["levels"])
      return f"{at}: {r['clustered']:,} images in {shown} clusters"
    if args.step == "sample":
      r = steps.sample(args.dir, args.target, name=args.name, clusters=args.clusters,
                       multiplier=args.multiplier, strategy=args.strategy, seed=args.seed)
      even = r["levels"][-1]
      return (f"{at}: {r['rows']:,} images, {r['different']:,} different; evenness of the highest "
              f"clusters {even['evenness_before']:.3f} before, {even['evenness_after']:.3f} after")
    if args.step == "retrieve":
      r = steps.retrieve(args.dir, args.seeds, make_mesh(), name=args.name, k=args.k or None,
                         clusters=args.clusters, probes=args.probes, recall=args.recall,
                         least=args.least, per_cluster=args.per_cluster, limit=args.limit,
                         seed=args.seed, report=report)
      return f"{at}: {r['rows']:,} images, {r['different']:,} different, for {r['set']:,}"
    if args.step == "dedup":
      r = steps.dedup(args.dir, make_mesh(), name=args.name, of=args.of, threshold=args.threshold,
                      k=args.neighbours, against=args.against, clusters=args.clusters,
                      against_threshold=args.against_threshold, probes=args.probes,
                      recall=args.recall, report=report)
      dropped = "".join(f"; {count:,} resemble {key}, see dropped-{key}.txt"
                        for key, count in r["against"].items())
      return (f"{at}: {r['rows']:,} images left; {r['duplicates']:,} duplicates in "
              f"{r['groups']:,} groups{dropped}")
    if args.step == "mix":
      r = steps.mix(args.dir, [_part(args, *entry, alone) for alone, entries in (
        (False, args.parts), (True, args.homogeneous)) for entry in entries], name=args.name)
      return f"{at / 'mix.json'}: " + ", ".join(
        f"{part['name']} {part['probability']:.1%}" for part in r["parts"])
    from dinov3_jax.curation.look import look
    from dinov3_jax.curation.results import open_store
    from dinov3_jax.data.sources import open_source
    notes = open_store(args.dir).notes
    page = look(args.dir, open_source(notes["source"], notes["split"]), name=args.name,
                level=args.level, report=report)
    return f"{page}, {write_report(args.dir)}"


def _part(args, what: str, weight: float | None, homogeneous: bool):
  """A result of this curation, or a source."""
  if (args.dir / what / "result.json").exists():
    return what, weight, homogeneous
  from dinov3_jax.curation.mixture import Part
  from dinov3_jax.data.sources import open_source
  try:
    count = len(open_source(what, args.split))
  except ValueError as error:
    raise ValueError(f"{what} is neither a result in {args.dir} nor a source: {error}") from error
  name = re.sub(r"[^\w.-]+", "-", os.path.basename(what.rstrip("/")))
  return Part(name, what, args.split, None, weight, homogeneous, count)


def main() -> int:
  """Runs the command; returns its exit code."""
  args = parser().parse_args()
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  # Not before the command line is known to be right: it takes seconds.
  from dinov3_jax.train import processes
  try:
    processes.join(args.distributed)
    import jax
    line = embed(args) if args.step == "embed" else run(args)
    if jax.process_index() == 0:
      print(line)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  return 0


if __name__ == "__main__":
  sys.exit(main())
