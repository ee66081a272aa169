"""What happens to runs that are killed, cut off, damaged, or fed with rubbish.

  python benchmarks/faults.py [NAME ...] [--folder DIR]

Prints a table with a row for each kind of fault, or for those named. A network of 10,000 parameters
is trained by the command itself, in processes of its own, on 60 images of noise; all that a row
counts is compared with a run that was left in peace, to the last bit. Takes half an hour on two
cores. `power` needs the right to mount a file system (root, and loop devices).
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable

import numpy as np
from fault_bench import (
  ROOT,
  Bench,
  Peak,
  checkpoints,
  make_images,
  resident,
  same,
  stored,
  wait_for_handler,
)
from PIL import Image


def kills(bench: Bench, workers: int, count: int = 50) -> str:
  """SIGKILL at random moments, until a run has come to its end: one in four while it starts, the
  others within a second and a half of the first checkpoint that it writes."""
  setting = f"data.workers={workers}"
  bench.undisturbed(setting)
  killed = ended = wrong = 0
  while killed < count:
    workdir = bench.folder / f"killed-{workers}-{ended}"
    for _ in range(20):
      before = checkpoints(workdir)
      process = bench.start(workdir, setting)
      if bench.rng.random() < 0.25:
        time.sleep(bench.rng.uniform(0.0, 5.0))
      else:
        while checkpoints(workdir) == before and process.poll() is None:
          time.sleep(0.005)
        time.sleep(bench.rng.uniform(0.0, 1.5))
      if process.poll() is not None:
        process.communicate()
        break  # it has come to its end
      process.kill()
      process.communicate()
      killed += 1
    wrong += not bench.ends_right(workdir, setting)
    ended += 1
    shutil.rmtree(workdir)
  return f"{killed} kills in {ended} runs: {wrong} ended with another state or not at all"


def damages(bench: Bench, count: int = 200) -> str:
  """One file of the newest checkpoint cut, zeroed, emptied, deleted, or a bit of it flipped."""
  import runpy

  import jax

  from dinov3_jax.train import prepare
  workdir = bench.folder / "whole"
  bench.finish(workdir, "train.steps=8")
  bench.finish(bench.folder / "older", "train.steps=8", "checkpoint.keep=10")
  config = runpy.run_path(str(bench.recipe))["get_config"]()
  states = {}
  for step in (6, 8):
    copy = bench.folder / "states"
    shutil.copytree(workdir, copy)
    for other in {4, 6, 8} - {step}:
      shutil.rmtree(copy / "checkpoints" / str(other))
    states[step] = jax.device_get(prepare.restore(prepare.prepare(config, copy)))
    shutil.rmtree(copy)

  whole = prepare.prepare(config, workdir)
  counts = dict(unchanged=0, fallback=0, wrong=0, lost=0)
  names = sorted(path.relative_to(workdir) for path in (workdir / "checkpoints" / "8").rglob("*")
                 if path.is_file())
  for i in range(count):
    copy = bench.folder / "damaged"
    shutil.copytree(workdir, copy)
    damage(copy / names[i % len(names)], bench.rng)
    try:
      folder, _, bad = prepare.find(config, type(whole.workdir)(copy), whole.abstract_state)
      run = dataclasses.replace(whole, workdir=type(whole.workdir)(copy), folder=folder,
                                damaged=bad)
      state = jax.device_get(prepare.restore(run))
      right = jax.tree.all(jax.tree.map(np.array_equal, state, states[run.start]))
      counts["wrong" if not right else "unchanged" if run.start == 8 else "fallback"] += 1
    except Exception as error:
      print(names[i % len(names)], repr(error)[:300], file=sys.stderr)
      counts["lost"] += 1
    shutil.rmtree(copy)
  whole.pipeline.close()
  return (f"{count} damages: {counts['unchanged']} touched nothing that is read, "
          f"{counts['fallback']} were found and the checkpoint before taken, {counts['wrong']} "
          f"restored wrongly, {counts['lost']} runs lost")


def damage(path: pathlib.Path, rng: random.Random):
  data = bytearray(path.read_bytes())
  kind = rng.choice(["cut", "zeroed", "emptied", "deleted", "flipped", "flipped", "flipped"])
  if kind == "deleted" or not data:
    path.unlink()
    return
  at = rng.randrange(len(data))
  if kind == "flipped":
    data[at] ^= 1 << rng.randrange(8)
  path.write_bytes({"cut": data[:at], "zeroed": bytes(len(data)), "emptied": b"",
                    "flipped": data}[kind])


SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN; its argument 2: nothing more reaches the disk


def power(bench: Bench, count: int = 20) -> str:
  """An ext4 that loses power: what was not synced by then is gone."""
  import fcntl
  image, mount = bench.folder / "disk.img", bench.folder / "disk"
  mount.mkdir()
  seconds = bench.duration()
  lost = wrong = had = 0
  for _ in range(count):
    with image.open("wb") as file:
      file.truncate(2**28)
    run = lambda *command: subprocess.run(command, check=True, capture_output=True)
    run("mkfs.ext4", "-q", "-F", str(image))
    run("mount", "-o", "loop", str(image), str(mount))
    process = bench.start(mount / "run")
    while not checkpoints(mount / "run") and process.poll() is None:
      time.sleep(0.02)
    time.sleep(bench.rng.uniform(0.0, 0.5) * seconds)
    named = checkpoints(mount / "run")
    folder = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", 2))
    os.close(folder)
    process.kill()
    process.communicate()
    run("umount", str(mount))
    run("mount", "-o", "loop", str(image), str(mount))
    # What had its name before the cut is there after it, and its run goes on from there.
    code, out, err = bench.finish(mount / "run")
    if named:
      had += 1
      start = next((int(line.rsplit("/", 1)[1]) for line in out.splitlines()
                    if "going on from" in line), 0)
      if start < named[-1] or code:
        print(named, out[-500:], err[-500:], file=sys.stderr)
      lost += code != 0 or start < named[-1]
    wrong += code != 0 or not same(stored(mount / "run"), bench.undisturbed())
    run("umount", str(mount))
  return (f"{count} cuts, {had} of them after a checkpoint: {lost} runs lost or set back behind "
          f"it, {wrong} ended with another state")


def rubbish(bench: Bench, count: int = 1000) -> str:
  """Damaged images, cut, flipped, bombs, odd headers, through training and `features`."""
  folder = make_images(bench.folder / "rubbish", 200)
  good = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
  jpeg = bench.folder / "x.jpg"
  Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(jpeg)
  good += [jpeg.read_bytes()] * 100
  for i in range(count):
    data = bytearray(bench.rng.choice(good))
    suffix = "jpg" if data[:2] == b"\xff\xd8" else "png"
    kind = i % 5
    if kind == 0:
      del data[bench.rng.randrange(len(data)):]
    elif kind == 1:
      for _ in range(20):
        data[bench.rng.randrange(len(data))] ^= 1 << bench.rng.randrange(8)
    elif kind == 2:
      data[:] = bomb(bench.rng.choice([20_000, 60_000, 2**31 - 1]), bench.rng.choice([1, 60_000]))
      suffix = "png"
    elif kind == 3:
      data[8:40] = bytes(bench.rng.randrange(256) for _ in range(32))
    else:
      data[:] = bench.rng.choice([b"", b"\0" * 5000, b"<html></html>", b"GIF89a", b"\x89PNG\r\n"])
    (folder / "ab"[i % 2] / f"bad-{i}.{suffix}").write_bytes(data)
  steps = -(-(count + 200) // 16)
  began = time.monotonic()
  results = {}
  for name, command in dict(
      training=["-m", "dinov3_jax.main", f"--config={bench.recipe}",
                f"--workdir={bench.folder / 'on-rubbish'}", f"--config.data.source={folder}",
                "--config.data.max_damaged=1.0", "--config.data.workers=2",
                f"--config.train.steps={steps}", "--config.evals.every=0"],
      features=["-m", "dinov3_jax.features", str(folder), "--weights",
                str(bench.folder / "calm-0"), "--out", str(bench.folder / "f.npy")]).items():
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=bench.environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    out, err = process.communicate(timeout=900)
    results[name] = process.returncode, "Traceback" in out + err, peak.close()
    if process.returncode:
      print(out[-1000:], err[-1000:], file=sys.stderr)
  said = "; ".join(f"{name}: exit code {code}, {'a' if trace else 'no'} trace, at most "
                   f"{size / 2**20:,.0f} MiB in all its processes"
                   for name, (code, trace, size) in results.items())
  return f"{count} damaged images among 200 good ones: {said}; {time.monotonic() - began:.0f} s"


def bomb(width: int, height: int) -> bytes:
  """A PNG of a few kilobytes that says it is huge."""
  chunk = lambda kind, data: (struct.pack(">I", len(data)) + kind + data
                              + struct.pack(">I", zlib.crc32(kind + data)))
  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
    b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")


def signals(bench: Bench, count: int = 50) -> str:
  """SIGTERM and SIGINT by turns, from the first import on, until a run has come to its end."""
  bench.undisturbed("data.workers=0")
  bench.undisturbed("data.workers=2")
  sent = traces = odd = saving = wrong = runs = 0
  while sent < count:
    workdir, setting = bench.folder / f"signal-{runs}", f"data.workers={runs % 2 * 2}"
    for _ in range(12):
      number = (signal.SIGTERM, signal.SIGINT)[sent % 2]
      process = bench.start(workdir, setting)
      wait_for_handler(process)
      time.sleep(bench.rng.uniform(0.0, 8.0))
      process.send_signal(number)
      out, err = process.communicate(timeout=1000)
      if "has its" in out:  # it has come to its end
        break
      sent += 1
      saving += "stopped by" in out
      odd += process.returncode != 128 + number
      if "Traceback" in out + err or "leaked" in err:
        traces += 1
        print(err[-2000:], file=sys.stderr)
    wrong += not bench.ends_right(workdir, setting)
    runs += 1
    shutil.rmtree(workdir)
  return (f"{sent} signals in {runs} runs, {saving} of them saved: {traces} traces, {odd} other "
          f"exit codes, {wrong} runs ended with another state")


def full_disk(bench: Bench) -> str:
  """A tmpfs of 64 MiB that is full while checkpoints are written, then is not."""
  mount = bench.folder / "small"
  mount.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], check=True)
  try:
    bench.stop_at(mount / "run", 8)
    before = checkpoints(mount / "run")
    with contextlib.suppress(OSError), (mount / "filler").open("wb", buffering=0) as file:
      while True:
        file.write(bytes(2**12))
    code, out, err = bench.finish(mount / "run")
    said = [line for line in err.splitlines() if "cannot be written" in line]
    kept = checkpoints(mount / "run")
    (mount / "filler").unlink()
    right = bench.ends_right(mount / "run")
    left = [path.name for path in (mount / "run" / "checkpoints").iterdir()
            if not path.name.isdigit()]
  finally:
    subprocess.run(["umount", str(mount)], check=True)
  trace = "a" if "Traceback" in out + err else "no"
  ends = "ends the same to the last bit" if right else "ENDS OTHERWISE"
  return (f"exit code {code}, {len(said)} lines, {trace} trace; checkpoints before {before} and "
          f"then {kept}; with room again it {ends}, {len(left)} unfinished left")


def divergence(bench: Bench) -> str:
  """A run that goes on at a rate of 1e6, and again at its own."""
  workdir = bench.folder / "diverged"
  bench.stop_at(workdir, 20)
  code, _, err = bench.finish(workdir, "schedules.lr.peak=1e6", "schedules.lr.end=1e6")
  newest = checkpoints(workdir)[-1]
  line = err.strip().splitlines()[-1] if err.strip() else "nothing"
  right = bench.ends_right(workdir)
  return (f"exit code {code}, newest checkpoint {newest}, and at its own rate it "
          f"{'ends the same to the last bit' if right else 'ends otherwise'}; it said: "
          f"{line.replace(str(bench.folder), '...')}")


def two_runs(bench: Bench) -> str:
  """A second run in a folder, while the first trains and after it was killed."""
  workdir = bench.folder / "shared"
  first = bench.start(workdir, "train.steps=100000")
  while not checkpoints(workdir) and first.poll() is None:
    time.sleep(0.2)
  code, _, err = bench.finish(workdir)
  first.kill()
  first.communicate()
  shutil.rmtree(workdir)
  third = bench.start(workdir)
  while not checkpoints(workdir) and third.poll() is None:
    time.sleep(0.2)
  third.kill()
  third.communicate()
  right = bench.ends_right(workdir)
  said = err.strip().replace(str(bench.folder), "...")
  return (f"the second: exit code {code}, {said!r}; after "
          f"the first was killed it {'goes on' if right else 'DOES NOT GO ON'}")


def long_run(bench: Bench, steps: int = 10_000) -> str:
  """Memory over many steps with two workers."""
  workdir = bench.folder / "long"
  process = bench.start(workdir, "data.workers=2", f"train.steps={steps}", "log_every=100",
                        "checkpoint.every=500", "evals.every=2500")
  sizes: dict[int, int] = {}
  log = workdir / "metrics.jsonl"
  began = time.monotonic()
  while process.poll() is None:
    time.sleep(1)
    lines = log.read_text().splitlines() if log.exists() else []
    if lines and lines[-1].endswith("}"):
      sizes.setdefault(json.loads(lines[-1])["step"] // 1000, resident(process.pid))
  _, err = process.communicate()
  mib = {step: round(size / 2**20) for step, size in sizes.items() if size}
  return (f"{steps:,} steps in {time.monotonic() - began:.0f} s, exit code {process.returncode}; "
          f"MiB after thousands of steps: {', '.join(f'{k}: {v}' for k, v in mib.items())}; "
          f"{'a' if 'Traceback' in err or 'leaked' in err else 'no'} trace")


def checksums(bench: Bench) -> str:
  """What it costs to write and to verify them, at 1 GiB."""
  import jax

  from configs import base
  from dinov3_jax.train.writer import Writer
  from dinov3_jax.weights import native
  keys = jax.random.split(jax.random.key(0), 16)
  state = {f"part{i}": jax.random.normal(key, (2**14, 2**10)) for i, key in enumerate(keys)}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  times: dict[str, list[float]] = {}
  for turn in range(4):  # the first compiles, and does not count
    for verify in (True, False):
      workdir = bench.folder / f"gigabyte-{turn}-{verify}"
      began = time.perf_counter()
      with Writer(workdir, keep=1, keep_every=0, verify=verify) as writer:
        writer.save(1, state, {}, base.get_config())
      written = time.perf_counter()
      jax.block_until_ready(native.read_arrays(native.latest(workdir), abstract, verify))
      read = time.perf_counter()
      if turn:
        how = "with" if verify else "without"
        for name, seconds in (("written", written - began), ("read", read - written)):
          times.setdefault(f"{name} {how} checksums", []).append(seconds)
      shutil.rmtree(workdir)
  return "1 GiB: " + ", ".join(f"{name} in {sorted(seconds)[1]:.2f} s"
                               for name, seconds in times.items())


FAULTS: dict[str, Callable[[Bench], str]] = {
  "kills, no workers": lambda bench: kills(bench, 0),
  "kills, two workers": lambda bench: kills(bench, 2),
  "damages": damages, "power": power, "rubbish": rubbish, "signals": signals,
  "full disk": full_disk, "divergence": divergence, "two runs": two_runs, "long run": long_run,
  "checksums": checksums}


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAULTS))
  parser.add_argument("--folder", help="to work in; by default a new one, deleted in the end")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  # In a shell's background job Ctrl-C is ignored, and so it would be in all that is started here.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.path.insert(0, str(ROOT))
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  logging.disable(logging.CRITICAL)
  with tempfile.TemporaryDirectory() as temporary:
    bench = Bench(pathlib.Path(args.folder or temporary), random.Random(args.seed))
    print("| fault | what came of it |\n|---|---|", flush=True)
    for name in args.names or FAULTS:
      print(f"| {name} | {FAULTS[name](bench)} |", flush=True)


if __name__ == "__main__":
  main()
