"""Classification of folders: k-NN, linear probes, logistic regression on frozen CLS features."""

import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.sources import is_spec
from dinov3_jax.evals import classification
from dinov3_jax.evals import linear as probe
from dinov3_jax.evals import logistic as regression
from dinov3_jax.evals.class_folders import LAYOUT, classes_of, images_of, images_of_source
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.knn import knn_accuracy
from dinov3_jax.evals.pca import heatmap
from dinov3_jax.evals.session import Result, Session

SIZE = 512  # paper 6.2.1: the short side is resized to it, and the middle is cut out
KNN_SIZE = 224  # of the reference's k-NN: the short side is resized to 256
KS = (10, 20, 100, 200)


def _split(session: Session, names: Sequence[str]) -> pathlib.Path:
  for name in names[:-1]:
    if (session.data / name).is_dir():
      return session.data / name
  return session.path(names[-1], LAYOUT)


def _data(session: Session, size: int, shorter: int | None, test: Sequence[str]):
  """Features and labels of the training and the test set, and the names of the classes."""
  if is_spec(str(session.data)):
    return _source_data(session, size, shorter)
  folder = session.path("train", LAYOUT)
  classes, result = classes_of(folder), []
  look = framing(session.prepare, session.side(size),
                 shorter=shorter and session.side(size) * shorter // size)
  for split in (folder, _split(session, test)):
    images, labels = images_of(split, classes)
    chosen = session.some(range(len(images)))
    features, kept = session.features([images[i] for i in chosen], look)
    result += [features, labels[chosen][kept]]
  return *result, classes


def _source_data(session: Session, size: int, shorter: int | None):
  """The same of a source, whose test set is its split for val."""
  classes, result, spec = None, [], str(session.data)
  look = framing(session.prepare, session.side(size),
                 shorter=shorter and session.side(size) * shorter // size)
  for split in ("train", "val"):
    images, labels, classes = images_of_source(spec, split, classes)
    chosen = session.some(range(len(images)))
    features, kept = session.features([images[i] for i in chosen], look)
    result += [features, labels[chosen][kept]]
  return *result, classes


def _differing(session: Session, own: int) -> list[str]:
  size = session.side(own)
  return [f"images of {size} pixels, not {own}"] * (size != own) + [
    f"{session.limit} images of each split"] * (session.limit is not None)


def _confusion(scores, labels, count: int) -> np.ndarray:
  """A picture of which class (row) is taken for which (column), each row's share as brightness."""
  table = classification.confusion(np.asarray(scores).argmax(1), labels, count).astype(float)
  colours = heatmap(table / np.maximum(table.sum(1, keepdims=True), 1), 0, 1)
  factor = max(1, 480 // count)
  return np.kron(np.round(255 * colours).astype(np.uint8), np.ones((factor, factor, 1), np.uint8))


def knn(session: Session) -> Result:
  """The reference's k-NN: softmax of cosine / 0.07 among the k nearest."""
  train, labels, test, truth, classes = _data(session, KNN_SIZE, 256, ("test", "val"))
  found = knn_accuracy(train, labels, test, truth, KS, num_classes=len(classes))
  figures = {f"top-1, k = {k}": 100 * value["top1"] for k, value in found.items()}
  return Result(figures, dict(ks=list(KS), temperature=0.07, size=session.side(KNN_SIZE),
                              train=len(labels), test=len(truth), classes=len(classes)),
                _differing(session, KNN_SIZE))


def linear(session: Session) -> Result:
  """SGD over the paper's grid of rates and decays; the best head by the validation accuracy."""
  train, labels, test, truth, classes = _data(session, SIZE, None, ("test", "val"))
  heads = probe.train(train, labels, num_classes=len(classes), steps=session.steps)
  accuracy = probe.accuracies(heads, test, truth)
  best = int(np.argmax(accuracy))
  logits = heads.logits(test, best)
  differs = ["features of the middle of each training image, not of random crops"]
  if session.steps is not None:
    differs.append(f"{session.steps} steps, not {probe.EPOCHS} epochs")
  return Result(
    {"top-1": 100 * accuracy[best],
     "top-1, mean per class": 100 * classification.accuracy_per_class(logits, truth)},
    dict(rates=list(probe.RATES), decays=list(probe.DECAYS), momentum=probe.MOMENTUM,
         batch=min(probe.BATCH, len(labels)), steps=len(heads.losses),
         best=dict(rate=float(heads.rates[best]), decay=float(heads.decays[best])),
         size=session.side(SIZE), train=len(labels), test=len(truth), classes=len(classes)),
    differs + _differing(session, SIZE),
    pictures={"confusion.png": _confusion(logits, truth, len(classes))})


def logistic(session: Session) -> Result:
  """Logistic regression as for the fine-grained sets; a tenth of the training set chooses C."""
  train, labels, test, truth, classes = _data(session, SIZE, None, ("test", "val"))
  fitting, validation = regression.split(labels)
  best, accuracies, model = regression.choose(train, labels, fitting, validation)
  logits = np.full((len(test), len(classes)), -np.inf)
  logits[:, model.classes] = model.logits(test)
  return Result(
    {"top-1": 100 * classification.accuracy(logits, truth),
     "top-1, mean per class": 100 * classification.accuracy_per_class(logits, truth)},
    dict(C=best, validation_accuracy=float(accuracies.max()), size=session.side(SIZE),
         train=len(labels), test=len(truth), classes=len(classes)),
    _differing(session, SIZE), pictures={"confusion.png": _confusion(logits, truth, len(classes))})
