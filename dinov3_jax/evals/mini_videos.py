"""Small data sets of videos: masks that move (DAVIS, YouTube-VOS, MOSE), actions, and a clip with
some of its frames."""

import json
import pathlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from dinov3_jax.evals.clips import INSTALL
from dinov3_jax.evals.mini_canvas import background, compose, place, save, save_labels

SPEED, TURN, GROWTH = 7, 14, 1.09  # of an action: pixels, degrees and the factor a frame
MOTIONS = {"Moving [something] left": (-1, 0, 0, 0), "Moving [something] right": (1, 0, 0, 0),
           "Moving [something] up": (0, -1, 0, 0), "Moving [something] down": (0, 1, 0, 0),
           "Turning [something] left": (0, 0, 1, 0), "Turning [something] right": (0, 0, -1, 0),
           "Bringing [something] closer": (0, 0, 0, 1), "Taking [something] away": (0, 0, 0, -1)}


def scene(drawings, rng: np.random.Generator, frames: int, height: int = 192, width: int = 256):
  """Three drawings that move, turn, grow and hide each other before a camera that pans.

  Yields:
    An image and its labels, uint8 [height, width, 3] and [height, width], for each frame.
  """
  chosen = [drawings[i] for i in rng.choice(len(drawings), 3, replace=False)]
  start, speed = rng.uniform([10, 10], [90, 150], (3, 2)), rng.uniform(-7, 7, (3, 2))
  turn, grow = rng.uniform(-6, 6, 3), rng.uniform(0.99, 1.02, 3)
  behind, pan = background(rng, height, width + 2 * frames), 2
  for t in range(frames):
    image = behind[:, pan * t:pan * t + width]
    labels = np.zeros((height, width), np.uint8)
    for k, drawing in enumerate(chosen):
      top, left = np.round(start[k] + t * speed[k]).astype(int).tolist()
      image, alpha = compose(image, place(drawing, t * turn[k], 1.1 * grow[k]**t), left, top)
      labels[alpha > 127] = k + 1
    noise = rng.normal(0, 4, image.shape)
    yield np.clip(image + noise, 0, 255).astype(np.uint8), labels


def davis(out: pathlib.Path, drawings, rng: np.random.Generator, videos: int = 8, frames: int = 10):
  """DAVIS 2017: a mask for every frame, and the list of the videos."""
  names = [f"clip{i}" for i in range(videos)]
  for name in names:
    for t, (image, labels) in enumerate(scene(drawings, rng, frames)):
      save(out / "JPEGImages/480p" / name / f"{t:05}.jpg", image)
      save_labels(out / "Annotations/480p" / name / f"{t:05}.png", labels)
  path = out / "ImageSets/2017/val.txt"
  path.parent.mkdir(parents=True)
  path.write_text("\n".join(names) + "\n")


def youtube_vos(out: pathlib.Path, drawings, rng: np.random.Generator, videos: int = 3,
                frames: int = 16):
  """YouTube-VOS: every fifth frame has a mask; the third drawing comes with the second mask."""
  meta = {}
  for name in (f"{i:010x}" for i in rng.choice(2**32, videos, replace=False)):
    for t, (image, labels) in enumerate(scene(drawings, rng, frames)):
      save(out / "train/JPEGImages" / name / f"{t:05}.jpg", image)
      if t % 5 == 0:
        save_labels(out / "train/Annotations" / name / f"{t:05}.png",
                    np.where((labels == 3) & (t < 5), 0, labels))
    meta[name] = dict(objects={str(k): dict(category="drawing", frames=[
        f"{t:05}" for t in range(5 * (k == 3), frames, 5)]) for k in (1, 2, 3)})
  (out / "train/meta.json").write_text(json.dumps(dict(videos=meta)))


def mose(out: pathlib.Path, drawings, rng: np.random.Generator, videos: int = 3, frames: int = 8):
  """MOSE: a mask for every frame, no list; the first video is taller than wide."""
  for i in range(videos):
    name = f"{i:08x}"
    for t, (image, labels) in enumerate(scene(drawings, rng, frames, *(
        (256, 192) if i == 0 else (192, 256)))):
      save(out / "train/JPEGImages" / name / f"{t:05}.jpg", image)
      save_labels(out / "train/Annotations" / name / f"{t:05}.png", labels)


def clip(out: pathlib.Path, drawings, rng: np.random.Generator, frames: int = 16):
  """A video of drawings that move, and three of its frames as images."""
  images = [image for image, _ in scene(drawings, rng, frames)]
  for t in np.linspace(0, frames - 1, 3).astype(int).tolist():
    save(out / f"frame_{t:02}.jpg", images[t])
  write_video(out / "clip.mp4", images, np.arange(frames) / 10)


def action(drawing, motion: Sequence[int], rng: np.random.Generator, frames: int, side: int = 96
           ) -> list[np.ndarray]:
  """A drawing that moves, turns or grows by a motion of `MOTIONS`, uint8 [side, side, 3] each.

  In the middle of the video it stands in the middle of the frame, upright and at its size: the
  video of the opposite motion has the same frames in the opposite order, but for noise.
  """
  behind = background(rng, side, side)
  along, down, turn, grow = motion
  result = []
  for t in np.arange(frames) - (frames - 1) / 2:
    shown = place(drawing, TURN * turn * t, 0.4 * GROWTH ** (grow * t) * side / drawing.width)
    left, top = (round((side - shown.width) / 2 + SPEED * step * t * 12 / frames)
                 for step in (along, down))
    image, _ = compose(behind, shown, left, top)
    result.append(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8))
  return result


def write_video(path: pathlib.Path, frames: Sequence[np.ndarray], seconds: Sequence[float],
                codec: str = "mpeg4"):
  """Writes frames uint8 [H, W, 3] that are shown at these times, in seconds from 0, ascending."""
  try:
    import av
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(INSTALL) from error
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=30)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    for image, time in zip(frames, seconds):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _actions(drawings, rng, count: int, frames: int):
  """Videos of all motions alike often: (frames, their times, a drawing's label, a motion)."""
  for i in range(count):
    index = int(rng.choice(len(drawings)))
    motion = list(MOTIONS)[i % len(MOTIONS)]
    times = np.concatenate([[0], np.cumsum(rng.uniform(0.03, 0.12, frames - 1))])
    yield action(drawings[index], MOTIONS[motion], rng, frames), times, index, motion


def ssv2(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 120, val: int = 48,
         frames: int = 12):
  """Something-Something v2: the class is the motion, which single frames do not tell."""
  number = 0
  out.mkdir(parents=True, exist_ok=True)
  for split, count in (("train", train), ("validation", val)):
    items = []
    for images, times, _, motion in _actions(drawings, rng, count, frames):
      number += 1
      write_video(out / "20bn-something-something-v2" / f"{number}.webm", images, times, "libvpx")
      items.append(dict(id=str(number), template=motion, placeholders=["a drawing"],
                        label=motion.replace("[something]", "a drawing").lower()))
    (out / f"{split}.json").write_text(json.dumps(items))
  plain = (name.replace("[", "").replace("]", "") for name in sorted(MOTIONS))
  (out / "labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(plain)}))


def kinetics(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 120,
             val: int = 48, frames: int = 12):
  """Kinetics: the class is the drawing's category, which any frame tells; motions are random."""
  for split, count in (("train", train), ("val", val)):
    for i, (images, times, index, _) in enumerate(_actions(drawings, rng, count, frames)):
      name = drawings.classes[drawings.labels[index]]
      write_video(out / split / name / f"{split}{i:04}_000000_000010.mp4", images, times)


def ucf(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 8, val: int = 4,
        frames: int = 12):
  """UCF101: the class is the motion; the lists name each video below its class."""
  names = ["".join(word.capitalize() for word in motion.replace("[something] ", "").split())
           for motion in MOTIONS]
  lists = out / "ucfTrainTestlist"
  lists.mkdir(parents=True)
  (lists / "classInd.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))
  for group, (file, count) in enumerate((("trainlist01", train), ("testlist01", val)), 1):
    lines = []
    for i, (images, _, _, motion) in enumerate(_actions(drawings, rng, count, frames)):
      label = list(MOTIONS).index(motion)
      path = f"{names[label]}/v_{names[label]}_g{group:02}_c{i:02}.avi"
      write_video(out / "UCF-101" / path, images, np.arange(frames) / 25)
      lines.append(path + (f" {label + 1}" if file == "trainlist01" else ""))
    (lists / f"{file}.txt").write_text("\n".join(lines) + "\n")
