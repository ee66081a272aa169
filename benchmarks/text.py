"""The figures of `text.md`: text towers trained on the quickstart's backbone, beside baselines.

  bash launch/quickstart.sh
  python -m dinov3_jax.main --config=configs/dinotxt_quickstart.py --workdir=runs/dinotxt
  python benchmarks/text.py --run runs/dinotxt [RUN ...]

On OpenMoji's test drawings: zero-shot accuracy over the categories, and recall at 10 of a drawing's
own name among all names, means over the runs. Beside them: chance, the same towers untrained, and a
bag of words, which has the sum of a caption's word vectors in place of the text tower and a linear
layer on the backbone's frozen features in place of the vision head, trained for as many steps on as
many pairs with the same captions, as often as there are runs. And a linear probe of the categories
on the same features, which is told them as labels.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.pairs import open_pairs
from dinov3_jax.losses.contrastive import contrastive_loss
from dinov3_jax.text.loading import load_text
from dinov3_jax.text.networks import init_params
from dinov3_jax.text.objective import unit
from dinov3_jax.text.step import make_features
from dinov3_jax.text.tokenizer import END, START
from dinov3_jax.text.zeroshot import class_features
from dinov3_jax.train import checkpoint

RATES = (1e-3, 3e-3, 1e-2)  # of the bag of words, of which the best on the validation split counts
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the linear probe, likewise


def pictures(pairs, model) -> np.ndarray:
  """All drawings as the model takes them."""
  size = model.config.images.size
  return np.stack([model.preprocess(center_crop(pairs[i]["image"], size, size * 8 // 7))
                   for i in range(len(pairs))])


def in_parts(f, x, count: int = 128) -> np.ndarray:
  return np.concatenate([np.asarray(f(x[i:i + count])) for i in range(0, len(x), count)])


def measure(pairs, images: np.ndarray, encode) -> dict[str, np.ndarray]:
  """Which drawings are right: of those with a category that, and of all their names among 10."""
  names = encode([pairs.captions[i][0] for i in range(len(pairs))])
  known = pairs.labels >= 0
  classes = class_features(encode, pairs.classes, ("{}",))
  zeroshot = np.argmax(images[known] @ classes.T, axis=1) == pairs.labels[known]
  similarities = images @ names.T
  own = np.diagonal(similarities)[:, None]
  return dict(zeroshot=zeroshot, recall_10=np.sum(similarities >= own, axis=1) - 1 < 10)


def mean(results) -> dict[str, np.ndarray]:
  """Of several runs, for each drawing."""
  return {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}


def difference(a, b) -> str:
  """How much more of the same drawings are right, in per cent, with its standard error."""
  return ", ".join(f"{name} {100 * (a[name] - b[name]).mean():+.1f} (standard error "
                   f"{100 * (a[name] - b[name]).std() / len(a[name]) ** 0.5:.1f})" for name in a)


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


def probe(splits, seen) -> dict[str, np.ndarray]:
  """Logistic regression, of the strength that is best on the validation drawings."""
  known = {name: pairs.labels >= 0 for name, pairs in splits.items()}
  right = lambda model, name: model.predict(seen[name][known[name]]) == (
    splits[name].labels[known[name]])
  fit = lambda c: LogisticRegression(C=c, max_iter=2000).fit(
    seen["train"][known["train"]], splits["train"].labels[known["train"]])
  best = max(map(fit, STRENGTHS), key=lambda model: right(model, "val").mean())
  return dict(zeroshot=right(best, "test"))


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--run", required=True, nargs="+")
  args = parser.parse_args()
  model, *others = [load_text(run) for run in args.run]
  learned = [model.params, *(other.params for other in others)]
  training = checkpoint.stored_config(checkpoint.latest(args.run[0])).train
  splits = {name: open_pairs("openmoji:base", name) for name in ("train", "val", "test")}
  x = {name: pictures(pairs, model) for name, pairs in splits.items()}
  test, settings = splits["test"], model.backbone.settings

  def of_model(params):
    model.params = params
    images = in_parts(lambda x: model.encode_image(x)["global"], x["test"])
    return measure(test, images, lambda texts: model.encode_text(texts)["global"])

  trained = mean([of_model(params) for params in learned])
  model.config.logit_scale = dict(start=1 / 0.07)
  untrained = mean([of_model(init_params(model.config, settings, jax.random.key(seed)))
                    for seed in range(len(learned))])

  features = jax.jit(make_features(model.config, settings))

  def frozen(x):
    tokens = features(model.backbone.params, x)
    return jnp.concatenate([tokens["cls"], tokens["patches"].mean(1)], axis=-1)

  seen = {name: in_parts(frozen, images) for name, images in x.items()}
  center, spread = seen["train"].mean(0), seen["train"].std(0)
  seen = {name: (values - center) / spread for name, values in seen.items()}
  captions = [splits["train"].captions[i] for i in range(len(splits["train"]))]
  bag = Bag(model.tokenizer, captions, model.config.embedding, model.config.text.context)

  def trained_bag(rate, seed):
    return bag.train(seen["train"], captions, training.steps, training.batch_size, rate, seed)

  on_val = lambda params: sum(figure.mean() for figure in
                              bag.measure(splits["val"], seen["val"], params).values())
  rate = max(RATES, key=lambda rate: on_val(trained_bag(rate, 0)))
  bags = mean([bag.measure(test, seen["test"], trained_bag(rate, seed))
               for seed in range(len(learned))])

  labels = test.labels[test.labels >= 0]
  frequent = labels == np.bincount(labels).argmax()
  by_chance = np.full(1, 10 / len(test))
  rows = {"chance": dict(zeroshot=np.full(1, 1 / len(test.classes)), recall_10=by_chance),
          "the most frequent category": dict(zeroshot=frequent, recall_10=by_chance),
          "untrained towers": untrained, f"bag of words, rate {rate:g}": bags,
          "dino.txt": trained, "linear probe": probe(splits, seen)}
  print("| | zero-shot accuracy | recall@10 |\n|---|---:|---:|")
  for name, row in rows.items():
    print(f"| {name} | " + " | ".join(f"{100 * row[key].mean():.1f}" if key in row else ""
                                      for key in ("zeroshot", "recall_10")) + " |")
  print(f"{len(test)} test drawings with a name, {len(labels)} of them with a category")
  print(f"dino.txt over the bag of words: {difference(trained, bags)}")


if __name__ == "__main__":
  main()
