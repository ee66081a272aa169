"""The CPU time that augmentation takes an image, ours and the reference's recipe in torchvision.

  pip install torchvision scikit-image 'dinov3_jax[fast]'
  nice python benchmarks/input.py PHOTOS [--rounds 4]

PHOTOS are folders of photographs, such as `skimage/data`. Three sets are cut from them: A, JPEGs of
500 x 375 (a quarter of them upright) at quality 90; B, the same at 97 without subsampled colours;
C, 1600 x 1200 at 90, put together of unscaled parts. All variants take turns image by image in one
process on one thread, so that whatever else the machine does meets all of them alike.
"""

import argparse
import dataclasses
import io
import os
import pathlib
import time

import cv2
import jax
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from dinov3_jax.data import device_colors, jpeg
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.train.images import least_side


def reference():
  """The reference's augmentation, as its configuration for 224 and 96 pixels has it."""
  crop = lambda size, scale: [
    v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
    v2.RandomHorizontalFlip(p=0.5)]
  color = [v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)],
                          p=0.8), v2.RandomGrayscale(p=0.2)]
  blur = lambda p: v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=p)
  last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
          v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
  first = v2.Compose([*crop(224, (0.32, 1.0)), *color, *last])
  second = v2.Compose([*crop(224, (0.32, 1.0)), *color, blur(0.9),
                       v2.RandomSolarize(threshold=128, p=0.2), *last])
  local = v2.Compose([*crop(96, (0.05, 0.32)), *color, blur(0.5), *last])

  def views(data, seed):
    torch.manual_seed(seed)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return [first(image), second(image), *(local(image) for _ in range(8))]

  return views


def ours(decoder: Decoder = decode, pillow: bool = False, **options):
  """Our path with these settings; `pillow` does without simplejpeg."""
  crop = MultiCrop(**options)

  def views(data, seed):
    kept, jpeg.simplejpeg = jpeg.simplejpeg, None if pillow else jpeg.simplejpeg
    try:
      return crop(decoder(data, ""), np.random.default_rng(seed))
    finally:
      jpeg.simplejpeg = kept

  return views


def variants() -> dict:
  from configs import base
  scaled = Decoder(least_side=least_side(base.get_config().crops))
  return {
    "reference, torchvision": reference(),
    "exact, Pillow alone": ours(pillow=True),
    "exact (default)": ours(),
    "fast": ours(resizer="fast"),
    "exact, colours on the device": ours(colors="device"),
    "fast, colours on the device": ours(resizer="fast", colors="device"),
    "fast, scaled decoding": ours(scaled, resizer="fast"),
    "fast, scaled decoding, colours on the device": ours(scaled, resizer="fast", colors="device"),
  }


def photographs(folders: list[str]) -> list[np.ndarray]:
  """All pictures of at least 400 x 300 in colour."""
  found = []
  for path in sorted(path for folder in folders for path in pathlib.Path(folder).iterdir()):
    try:
      with Image.open(path) as image:
        if image.mode in ("RGB", "RGBA") and min(image.size) >= 300 and max(image.size) >= 400:
          found.append(np.asarray(image.convert("RGB")))
    except OSError:
      continue
  return found


def window(photo: np.ndarray, width: int, height: int, rng: np.random.Generator) -> Image.Image:
  """A part of a photograph in its own resolution, or, of small ones, enlarged a little."""
  scale = max(width / photo.shape[1], height / photo.shape[0], 1.0)
  w, h = int(width / scale), int(height / scale)
  left, top = (int(rng.integers(have - want + 1)) for have, want in (
    (photo.shape[1], w), (photo.shape[0], h)))
  part = Image.fromarray(photo[top : top + h, left : left + w])
  return part if scale == 1 else part.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, quality: int, subsampling: int) -> bytes:
  data = io.BytesIO()
  image.save(data, "JPEG", quality=quality, subsampling=subsampling)
  return data.getvalue()


def sets(photos: list[np.ndarray], count: int) -> dict[str, list[bytes]]:
  rng = np.random.default_rng(0)
  small = [window(photos[i % len(photos)], *((375, 500) if i % 4 == 3 else (500, 375)), rng)
           for i in range(count)]
  large = []
  for _ in range(max(count // 5, 1)):
    whole = Image.new("RGB", (1600, 1200))
    for x in range(0, 1600, 400):
      for y in range(0, 1200, 300):
        whole.paste(window(photos[rng.integers(len(photos))], 400, 300, rng), (x, y))
    large.append(whole)
  return {"A": [encode(image, 90, 2) for image in small],
          "B": [encode(image, 97, 0) for image in small[: count // 2]],
          "C": [encode(image, 90, 2) for image in large]}


def measure(paths: dict, data: list[bytes], rounds: int) -> dict[str, np.ndarray]:
  """Seconds of CPU, [rounds, images] each."""
  spent = {name: np.zeros((rounds, len(data))) for name in paths}
  for path in paths.values():
    path(data[0], 0)
  for turn in range(rounds):
    for i, image in enumerate(data):
      for name, path in paths.items():
        began = time.process_time()
        path(image, turn * len(data) + i)
        spent[name][turn, i] = time.process_time() - began
  return spent


def table(spent: dict[str, np.ndarray]) -> list[str]:
  """Milliseconds, how many times faster than the reference, and the range over quarters."""
  theirs = spent["reference, torchvision"]
  lines = []
  for name, seconds in spent.items():
    quarters = np.array_split(np.arange(seconds.shape[1]), 4)
    times = [theirs[:, q].sum() / seconds[:, q].sum() for q in quarters if len(q)]
    lines.append(f"| {name} | {1e3 * seconds.mean():.2f} | {theirs.sum() / seconds.sum():.1f} | "
                 f"{min(times):.1f}-{max(times):.1f} |")
  return lines


def parity(data: list[bytes]) -> list[str]:
  """How far the faster ways are from the exact one, with the same draws."""
  exact = MultiCrop(color_strength=0.0)
  plain = dataclasses.replace(exact, colors="device")
  fast = dataclasses.replace(plain, resizer="fast")
  from configs import base
  scaled = Decoder(least_side=least_side(base.get_config().crops))
  differences = {"fast": [], "scaled decoding": [], "colours on the device": []}
  host, device = MultiCrop(), MultiCrop(colors="device")
  for i, image in enumerate(data):
    pixels, rng = decode(image, ""), lambda i=i: np.random.default_rng(i)
    base_crops = plain(pixels, rng())
    smaller = plain(scaled(image, ""), rng())
    batch = {name: x[None] for name, x in device(pixels, rng()).items()}
    on_device = jax.device_get(device_colors.distort_batch(batch))
    on_host = host(pixels, rng())
    for name in ("global_crops", "local_crops"):
      for key, one, other in (("fast", fast(pixels, rng())[name], base_crops[name]),
                              ("scaled decoding", smaller[name], base_crops[name]),
                              ("colours on the device", on_device[name][0], on_host[name])):
        differences[key].append(np.abs(one.astype(int) - other).ravel())
  lines = []
  for key, parts in differences.items():
    difference = np.concatenate(parts).astype(float)
    square = max((difference**2).mean(), 1e-12)
    lines.append(f"| {key} | {10 * np.log10(255**2 / square):.1f} | {difference.mean():.3f} | "
                 f"{difference.max():.0f} |")
  return lines


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("photos", nargs="+")
  parser.add_argument("--rounds", type=int, default=4)
  parser.add_argument("--images", type=int, default=64)
  args = parser.parse_args()
  torch.set_num_threads(1)
  cv2.setNumThreads(0)
  photos = photographs(args.photos)
  print(f"{len(photos)} photographs; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
  for name, data in sets(photos, args.images).items():
    print(f"\nset {name}: {len(data)} images, {np.mean([len(x) for x in data]) / 1e3:.0f} kB each")
    print("\n".join(table(measure(variants(), data, args.rounds))))
    if name != "B":
      print("\n".join(parity(data[:24])))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
