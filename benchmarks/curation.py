"""The tables of `curation.md`: Lloyd's iterations beside faiss-cpu and scikit-learn, how they grow,
and what a pod would hold and send.

  python benchmarks/curation.py --out=curation.jsonl [--scale=1.0] [--only=TABLE,TABLE]

measures what the file does not hold yet, each figure in a process of its own, and prints the
tables: compare, rows, clusters, aot. `--scale=0.01` takes a hundredth of the rows, to try it. Needs
`pip install faiss-cpu scikit-learn`, for the pod `pip install -e .[tpu]`, and 16 GB of memory.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

DIM = 384
ITERATIONS = 5
COMPARED = ("dinov3_jax", "faiss-cpu", "scikit-learn")
ROWS = (250_000, 500_000, 1_000_000, 2_000_000)
CLUSTERS = (250, 500, 1_000, 2_000, 4_000)
POD = dict(rows=200_000_000, dim=1_024, clusters=8_000_000, topology="v5p:8x8x4")


def mixture(rows: int, clusters: int):
  """float32 [rows, DIM] of as many Gaussians as clusters, and where k-means begins."""
  import numpy as np
  rng = np.random.default_rng(0)
  means = rng.normal(size=(clusters, DIM)).astype(np.float32)
  x = means[rng.integers(clusters, size=rows)]
  for i in range(0, rows, 2**16):
    x[i:i + 2**16] += rng.normal(size=x[i:i + 2**16].shape).astype(np.float32)
  return x, x[rng.choice(rows, clusters, replace=False)].copy()


def measure(name: str, rows: int, clusters: int) -> dict:
  """Seconds an iteration, peak memory in bytes, and what is left: the mean squared distance."""
  import numpy as np
  x, start = mixture(rows, clusters)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if name == "dinov3_jax":
    from dinov3_jax.curation import kmeans
    from dinov3_jax.curation.rows import ArrayPoints, make_mesh
    began = time.perf_counter()
    points = ArrayPoints(x, make_mesh())
    placing = time.perf_counter() - began
    kmeans.lloyd(points, start, 1)  # compiles
    began = time.perf_counter()
    centroids = kmeans.lloyd(points, start, ITERATIONS)
    seconds = (placing + time.perf_counter() - began) / ITERATIONS
  elif name == "faiss-cpu":
    import faiss
    model = faiss.Kmeans(DIM, clusters, niter=ITERATIONS, max_points_per_centroid=rows)
    began = time.perf_counter()
    model.train(x, init_centroids=start)
    seconds, centroids = (time.perf_counter() - began) / ITERATIONS, model.centroids
  else:
    from sklearn.cluster import KMeans
    model = KMeans(clusters, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd")
    began = time.perf_counter()
    model.fit(x)
    seconds, centroids = (time.perf_counter() - began) / ITERATIONS, model.cluster_centers_
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  some, left = x[:2**14], []
  for i in range(0, len(some), 256):
    score = np.square(centroids).sum(1) - 2 * some[i:i + 256] @ centroids.T
    left.append(np.square(some[i:i + 256]).sum(1) + score.min(1))
  return dict(seconds=seconds, peak=1024 * peak, data=1024 * before,
              left=float(np.concatenate(left).mean()))


def compile_pod(rows: int, dim: int, clusters: int, topology: str) -> dict:
  """One iteration of Lloyd's, compiled for TPUs: memory of a device, bytes it sends, the least."""
  for key, value in dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_STDERR_LOG_LEVEL="3",
                         ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_ACCELERATOR_TYPE="v5p-8",
                         TPU_WORKER_HOSTNAMES="localhost").items():
    os.environ.setdefault(key, value)
  from dinov3_jax.aot import topology_devices
  from dinov3_jax.costs.collectives import bytes_by_kind, collectives
  from dinov3_jax.costs.flops import CHIPS
  from dinov3_jax.curation.kmeans import compile_iteration
  from dinov3_jax.curation.rows import make_mesh
  devices = topology_devices(topology)
  began = time.perf_counter()
  compiled, padded = compile_iteration(rows, dim, clusters, make_mesh(devices))
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  chip = CHIPS[devices[0].device_kind]
  share = (len(devices) - 1) / len(devices)
  sent = bytes_by_kind(collectives(compiled.as_text(), len(devices)))
  flops = 2 * rows * clusters * dim / len(devices)
  return dict(devices=len(devices), kind=devices[0].device_kind, memory=chip.memory,
              arguments=memory.argument_size_in_bytes, peak=memory.peak_memory_in_bytes, sent=sent,
              # Every centroid to every device once, and every sum from every device once.
              least=2 * 4 * clusters * dim * share, padded=padded, flops=flops,
              # float32 products of a TPU are six of bfloat16.
              seconds_at_peak=6 * flops / chip.flops, compile_seconds=seconds)


def jobs(scale: float) -> dict[str, list[dict]]:
  """What to measure, by table."""
  rows = lambda count: int(count * scale)
  at = dict(rows=rows(1_000_000), clusters=1_000)
  return dict(
    compare=[dict(name=name, **at) for name in COMPARED],
    rows=[dict(name="dinov3_jax", rows=rows(count), clusters=1_000) for count in ROWS],
    clusters=[dict(name="dinov3_jax", rows=rows(1_000_000), clusters=k) for k in CLUSTERS],
    aot=[dict(name="aot", **POD)])


def print_tables(found: list[tuple[dict, dict]], only: list[str], scale: float) -> None:
  """The tables, as far as they are measured."""
  giga = lambda size: f"{size / 2**30:.1f}"
  results = {json.dumps(job, sort_keys=True): result for job, result in found}
  for table, wanted in jobs(scale).items():
    done = [(job, results[key]) for job in wanted
            if (key := json.dumps(job, sort_keys=True)) in results]
    if table not in only or not done:
      continue
    if table == "aot":
      print("\n| rows | clusters | devices | arguments, GiB | peak, GiB | of, GiB | sent, GB | "
            "sent / least | s at peak |\n|---:|---:|---|---:|---:|---:|---:|---:|---:|")
      for job, r in done:
        sent = sum(r["sent"].values())
        print(f"| {job['rows']:,} x {job['dim']:,} | {job['clusters']:,} | {r['devices']} x "
              f"{r['kind']} | {giga(r['arguments'])} | {giga(r['peak'])} | {giga(r['memory'])} | "
              f"{sent / 1e9:.1f} | {sent / r['least']:.3f} | {r['seconds_at_peak']:.0f} |")
      continue
    print("\n| | rows | clusters | s an iteration | GFLOP/s | peak memory, GiB | of it data, GiB | "
          "left |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for job, r in done:
      flops = 2 * job["rows"] * job["clusters"] * DIM
      print(f"| {job['name']} | {job['rows']:,} | {job['clusters']:,} | {r['seconds']:.3f} | "
            f"{flops / r['seconds'] / 1e9:.0f} | {giga(r['peak'])} | {giga(r['data'])} | "
            f"{r['left']:.3f} |")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("curation.jsonl"))
  parser.add_argument("--scale", type=float, default=1.0)
  parser.add_argument("--only", default="compare,rows,clusters,aot")
  parser.add_argument("--job", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.job:
    job = json.loads(args.job)
    run = compile_pod if job.pop("name") == "aot" else None
    print(json.dumps(run(**job) if run else measure(**json.loads(args.job))))
    return
  only = args.only.split(",")
  lines = args.out.read_text().splitlines() if args.out.exists() else []
  found = [tuple(json.loads(line)) for line in lines]
  for table, wanted in jobs(args.scale).items():
    for job in wanted:
      if table not in only or any(job == done for done, _ in found):
        continue
      done = subprocess.run([sys.executable, __file__, f"--job={json.dumps(job)}"],
                            capture_output=True, text=True)
      if done.returncode:
        last = (done.stderr.strip() or "killed").splitlines()[-1]
        print(f"{job}: {last}", file=sys.stderr)
        continue
      found.append((job, json.loads(done.stdout.strip().splitlines()[-1])))
      with args.out.open("a") as file:
        file.write(json.dumps(found[-1]) + "\n")
  print_tables(found, only, args.scale)


if __name__ == "__main__":
  main()
