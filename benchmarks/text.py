"""The figures of `text.md`: text towers trained on the quickstart's backbone, beside baselines.

  bash launch/quickstart.sh
  python -m dinov3_jax.main --config=configs/dinotxt_quickstart.py --workdir=runs/dinotxt
  python benchmarks/text.py --run=runs/dinotxt

On OpenMoji's test drawings: zero-shot accuracy over the categories, and recall at 10 of a drawing's
own name among all names. Beside the run's: chance, the same towers untrained, and a bag of words,
which has the sum of a caption's word vectors in place of the text tower and a linear layer on the
backbone's frozen features in place of the vision head, trained for as many steps on as many pairs.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.pairs import open_pairs
from dinov3_jax.losses.contrastive import contrastive_loss
from dinov3_jax.text.loading import load_text
from dinov3_jax.text.networks import init_params
from dinov3_jax.text.objective import unit
from dinov3_jax.text.retrieval import recall
from dinov3_jax.text.step import make_features
from dinov3_jax.text.tokenizer import END, START
from dinov3_jax.text.zeroshot import accuracy, class_features

RATES = (1e-3, 3e-3, 1e-2)  # of the bag of words, of which the best on the validation split counts


def pictures(pairs, model) -> np.ndarray:
  """All drawings as the model takes them."""
  size = model.config.images.size
  return np.stack([model.preprocess(center_crop(pairs[i]["image"], size, size * 8 // 7))
                   for i in range(len(pairs))])


def in_parts(f, x, count: int = 128) -> np.ndarray:
  return np.concatenate([np.asarray(f(x[i:i + count])) for i in range(0, len(x), count)])


def measure(pairs, images: np.ndarray, encode) -> dict[str, float]:
  """Accuracy and recall of features of drawings, and of an encoder of captions."""
  names = encode([pairs.captions[i][0] for i in range(len(pairs))])
  found = recall(images, names, range(len(pairs)))
  known = pairs.labels >= 0
  classes = class_features(encode, pairs.classes, ("{}",))
  return dict(zeroshot=accuracy(images[known], classes, pairs.labels[known])["top1"],
              recall_10=found["image_to_text_10"])


class Bag:
  """Word vectors that are summed, and a linear layer on frozen features of images.

  Words that no training caption has are left out of a sum.
  """

  def __init__(self, tokenizer, captions, width: int, context: int):
    self._width = width
    known = np.unique(tokenizer([text for texts in captions for text in texts], context))
    known = known[(known > 0) & (known < START)]
    place = np.zeros(END + 1, np.int32)
    place[known] = np.arange(1, len(known) + 1)
    self._words = len(known) + 1
    self._ids = lambda texts: place[tokenizer(texts, context)]

  def train(self, features, captions, steps: int, batch: int, rate: float, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed))
    params = dict(words=0.02 * jax.random.normal(keys[0], (self._words, self._width)),
                  images=0.02 * jax.random.normal(keys[1], (features.shape[1], self._width)),
                  scale=jnp.log(jnp.float32(1 / 0.07)))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params, x, ids):
      return contrastive_loss(unit(x @ params["images"]), unit(self.texts(params, ids)),
                              jnp.exp(params["scale"]))

    @jax.jit
    def step(params, state, x, ids):
      updates, state = optimizer.update(jax.grad(loss)(params, x, ids), state)
      return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(seed), optimizer.init(params)
    for _ in range(steps):
      chosen = rng.choice(len(features), batch, replace=False)
      told = [captions[i][rng.integers(len(captions[i]))] for i in chosen]
      params, state = step(params, state, features[chosen], self._ids(told))
    return params

  @staticmethod
  def texts(params, ids):
    """The sum of the vectors of a caption's known words."""
    return jnp.sum(params["words"][ids] * (ids > 0)[..., None], axis=1)

  def measure(self, pairs, features, params):
    encode = lambda texts: np.asarray(unit(self.texts(params, self._ids(texts))))
    return measure(pairs, np.asarray(unit(features @ params["images"])), encode)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--run", required=True)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--batch", type=int, default=128)
  args = parser.parse_args()
  model = load_text(args.run)
  splits = {name: open_pairs("openmoji:base", name) for name in ("train", "val", "test")}
  x = {name: pictures(pairs, model) for name, pairs in splits.items()}

  def of_model(params):
    model.params = params
    images = in_parts(lambda x: model.encode_image(x)["global"], x["test"])
    return measure(splits["test"], images, lambda texts: model.encode_text(texts)["global"])

  test = splits["test"]
  labels = test.labels[test.labels >= 0]
  rows = {"chance": dict(zeroshot=1 / len(test.classes), recall_10=10 / len(test)),
          "the most frequent category": dict(
            zeroshot=np.bincount(labels).max() / len(labels), recall_10=10 / len(test)),
          "trained": of_model(model.params)}
  settings = model.backbone.settings
  model.config.logit_scale = dict(start=1 / 0.07)
  rows["untrained towers"] = of_model(init_params(model.config, settings, jax.random.key(0)))

  features = jax.jit(make_features(model.config, settings))

  def frozen(x):
    tokens = features(model.backbone.params, x)
    return jnp.concatenate([tokens["cls"], tokens["patches"].mean(1)], axis=-1)

  seen = {name: in_parts(frozen, images) for name, images in x.items()}
  mean, std = seen["train"].mean(0), seen["train"].std(0)
  seen = {name: (values - mean) / std for name, values in seen.items()}
  captions = [splits["train"].captions[i] for i in range(len(splits["train"]))]
  bag = Bag(model.tokenizer, captions, model.config.embedding, model.config.text.context)
  bags = [bag.train(seen["train"], captions, args.steps, args.batch, rate) for rate in RATES]
  best = max(bags, key=lambda params: sum(bag.measure(splits["val"], seen["val"], params).values()))
  rows["bag of words"] = bag.measure(test, seen["test"], best)
  print("| | zero-shot accuracy | recall@10 |\n|---|---:|---:|")
  for name, row in rows.items():
    print(f"| {name} | {100 * row['zeroshot']:.1f} | {100 * row['recall_10']:.1f} |")
  print(f"{len(test)} test drawings with a name, {len(labels)} of them with a category")


if __name__ == "__main__":
  main()
