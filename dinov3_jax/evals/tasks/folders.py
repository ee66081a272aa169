"""Classification of labelled images: k-NN, linear probes, logistic regression on CLS features."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.sources import is_spec
from dinov3_jax.evals import classification, labelled_sets
from dinov3_jax.evals import linear as probe
from dinov3_jax.evals import logistic as regression
from dinov3_jax.evals.class_folders import LAYOUT, classes_of, images_of, splits_of_source
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.knn import knn_accuracy
from dinov3_jax.evals.labelled_sets import PER_CLASS
from dinov3_jax.evals.pca import heatmap
from dinov3_jax.evals.session import LayoutError, Result, Session

SIZE = 512  # paper 6.2.1: the short side is resized to it, and the middle is cut out
KNN_SIZE = 224  # of the reference's k-NN: the short side is resized to 256
KS = (10, 20, 100, 200)
SEVERAL = regression.CS[8::8]  # strengths for several labels, where each is a fit a class
# Tables 8 and 22, by the metrics that are usual for the sets.
PAPER = {"vit7b16": {
  "Food-101, top-1": 96.9, "CIFAR-10, top-1": 99.6, "CIFAR-100, top-1": 96.0, "SUN397, top-1": 81.1,
  "Stanford Cars, top-1": 95.0, "FGVC Aircraft, mean per class": 88.2,
  "VOC2007, 11-point mAP": 88.2, "DTD, top-1": 87.2, "Oxford Pets, mean per class": 97.0,
  "Caltech101, mean per class": 94.8, "Flowers102, mean per class": 99.7, "CUB-200, top-1": 92.4,
  "Places205, top-1": 70.0, "iNaturalist 2018, top-1": 85.6, "iNaturalist 2021, top-1": 89.8}}


def _split(session: Session, names: Sequence[str]) -> pathlib.Path:
  for name in names[:-1]:
    if (session.data / name).is_dir():
      return session.data / name
  return session.path(names[-1], LAYOUT)


@dataclasses.dataclass
class Data:
  """Features [n, D] and labels of the training and of the test set.

  Attributes:
    train, labels, test, truth: labels are int [n], or bool [n, C] for several an image.
    images: of the training set.
    classes: their names.
    name: of a set that is known; of folders it is empty.
    metric: by which the set is usually reported.
    counted: with several labels, which of the test set count, bool [n, C].
    differs: what is not as in the paper.
  """

  train: np.ndarray
  labels: np.ndarray
  test: np.ndarray
  truth: np.ndarray
  images: list
  classes: list[str]
  name: str = ""
  metric: str = labelled_sets.TOP1
  counted: np.ndarray | None = None
  differs: list[str] = dataclasses.field(default_factory=list)

  def label(self, figure: str) -> str:
    """The name of a figure, with that of the set."""
    return f"{self.name}, {figure}" if self.name else figure


def _data(session: Session, size: int, shorter: int | None, several: bool = False) -> Data:
  """Class folders, a source (see `splits_of_source`), or one of `labelled_sets`.

  Args:
    size, shorter: as for `framing`, of the task itself.
    several: whether the task can do with several labels an image.
  """
  spec, notes = session.spec or str(session.data), []
  own = None if is_spec(spec) else labelled_sets.find_known(session)
  if own is not None:
    classes, splits = own.classes, (own.train, own.test)
    if own.train[1].ndim == 2 and not several:
      raise LayoutError(f"{own.name} has several labels an image: the task logistic can do with it")
  elif is_spec(spec):
    *splits, classes, notes = splits_of_source(spec)
  else:
    folder = session.path("train", LAYOUT)
    classes = classes_of(folder)
    splits = [images_of(own, classes) for own in (folder, _split(session, ("test", "val")))]
  look = framing(session.prepare, session.side(size),
                 shorter=shorter and session.side(size) * shorter // size)
  result, seen = [], []
  for images, labels in splits:
    chosen = np.array(session.some(range(len(images))))
    features, kept = session.features([images[i] for i in chosen], look)
    result += [features, labels[chosen][kept]]
    seen.append([images[i] for i in chosen[kept]])
  differs = notes + [f"images of {session.side(size)} pixels, not {size}"] * (
    session.side(size) != size) + [f"{session.limit} images of each split"] * (
    session.limit is not None)
  if own is None:
    return Data(*result, seen[0], classes, differs=differs)
  counted = None if own.counted is None else own.counted[chosen][kept]
  return Data(*result, seen[0], classes, own.name, own.metric, counted, [*own.differs, *differs])


def _confusion(scores, labels, count: int) -> np.ndarray:
  """A picture of which class (row) is taken for which (column), each row's share as brightness."""
  table = classification.confusion(np.asarray(scores).argmax(1), labels, count).astype(float)
  colours = heatmap(table / np.maximum(table.sum(1, keepdims=True), 1), 0, 1)
  factor = max(1, 480 // count)
  return np.kron(np.round(255 * colours).astype(np.uint8), np.ones((factor, factor, 1), np.uint8))


def knn(session: Session) -> Result:
  """The reference's k-NN: softmax of cosine / 0.07 among the k nearest."""
  data = _data(session, KNN_SIZE, 256)
  found = knn_accuracy(data.train, data.labels, data.test, data.truth, KS,
                       num_classes=len(data.classes))
  figures = {data.label(f"top-1, k = {k}"): 100 * value["top1"] for k, value in found.items()}
  return Result(figures, dict(
    ks=list(KS), temperature=0.07, size=session.side(KNN_SIZE), train=len(data.labels),
    test=len(data.truth), classes=len(data.classes)), data.differs)


def linear(session: Session) -> Result:
  """SGD over the paper's grid of rates and decays; the best head by the test accuracy."""
  data = _data(session, SIZE, None)
  kept = session.kept("linear", (session.side(SIZE), session.steps, data.labels.tolist()),
                      data.images)
  heads = probe.train(data.train, data.labels, num_classes=len(data.classes), steps=session.steps,
                      mesh=session.mesh, kept=kept)
  accuracy = probe.accuracies(heads, data.test, data.truth)
  best = int(np.argmax(accuracy))
  logits = heads.logits(data.test, best)
  differs = ["features of the middle of each training image, not of random crops"]
  if session.steps is not None:
    differs.append(f"{session.steps} steps, not {probe.EPOCHS} epochs")
  return Result(
    {data.label("top-1"): 100 * accuracy[best],
     data.label(PER_CLASS): 100 * classification.accuracy_per_class(logits, data.truth)},
    dict(rates=list(probe.RATES), decays=list(probe.DECAYS), momentum=probe.MOMENTUM,
         batch=min(probe.BATCH, len(data.labels)), steps=len(heads.losses),
         best=dict(rate=float(heads.rates[best]), decay=float(heads.decays[best])),
         size=session.side(SIZE), train=len(data.labels), test=len(data.truth),
         classes=len(data.classes)),
    differs + data.differs, PAPER,
    {"confusion.png": _confusion(logits, data.truth, len(data.classes))})


def logistic(session: Session) -> Result:
  """Logistic regression as for the fine-grained sets; a tenth of the training set chooses C."""
  data = _data(session, SIZE, None, several=True)
  if data.labels.ndim == 2:
    return _several(session, data)
  fitting, validation = regression.split(data.labels)
  best, accuracies, model = regression.choose(data.train, data.labels, fitting, validation)
  logits = np.full((len(data.test), len(data.classes)), -np.inf)
  logits[:, model.classes] = model.logits(data.test)
  return Result(
    {data.label("top-1"): 100 * classification.accuracy(logits, data.truth),
     data.label(PER_CLASS): 100 * classification.accuracy_per_class(logits, data.truth)},
    dict(C=best, validation_accuracy=float(accuracies.max()), size=session.side(SIZE),
         usual_metric=data.metric, train=len(data.labels), test=len(data.truth),
         classes=len(data.classes)),
    data.differs, PAPER,
    {"confusion.png": _confusion(logits, data.truth, len(data.classes))})


def _several(session: Session, data: Data) -> Result:
  """Each class against the rest; the C of the best mean precision on a tenth of the images."""
  order = np.random.default_rng(0).permutation(len(data.labels))
  validation, fitting = np.split(order, [max(len(order) // 10, 1)])

  def scores(train, labels, test, strength):
    return np.stack([regression.fit_binary(train, own, strength).probabilities(test)[:, 1]
                     for own in labels.T], 1)

  def precision(found, truth, counted):
    return float(np.mean([classification.average_precision_voc2007(f[c], t[c])
                          for f, t, c in zip(found.T, truth.T, counted.T)]))

  y, held = data.labels[fitting], data.labels[validation]
  if not (y.any(0) & ~y.all(0)).all():
    raise ValueError(f"too few images of {data.name}: a class has none, or has all of them")
  by_strength = [precision(scores(data.train[fitting], y, data.train[validation], strength), held,
                           np.ones_like(held)) for strength in SEVERAL]
  best = SEVERAL[int(np.argmax(by_strength))]
  found = scores(data.train, data.labels, data.test, best)
  return Result(
    {data.label(data.metric): 100 * precision(found, data.truth, data.counted)},
    dict(C=best, validation=100 * max(by_strength), size=session.side(SIZE),
         train=len(data.labels), test=len(data.truth), classes=len(data.classes)),
    [f"{len(SEVERAL)} strengths C, not {len(regression.CS)}", *data.differs], PAPER)
