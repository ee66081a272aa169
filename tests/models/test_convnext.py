from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models import convnext
from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.weights.naming import unflatten

DEPTHS, DIMS = (1, 1, 2, 1), (8, 16, 24, 32)


def abstract(depths=DEPTHS, dims=DIMS, **kwargs):
  return nnx.eval_shape(lambda: ConvNeXt(depths, dims, rngs=nnx.Rngs(0), **kwargs))


def build(arrays, naming="official", **kwargs):
  graphdef, state = nnx.split(abstract(**kwargs))
  params = jax.tree.map(jnp.asarray, unflatten(arrays, nnx.to_pure_dict(state), naming))
  chex.assert_trees_all_equal_shapes_and_dtypes(params, nnx.to_pure_dict(state))
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


@pytest.fixture(scope="module")
def recorded(golden):
  return golden("convnext")


@pytest.fixture(scope="module")
def model(recorded):
  arrays = {k.removeprefix("sd/"): v for k, v in recorded.items() if k.startswith("sd/")}
  return build(arrays, patch_size=16, drop_path=0.5)


def nhwc(x):
  return x.transpose(0, 2, 3, 1)


forward = jax.jit(lambda model, x: model(x))
features = jax.jit(lambda model, x, layers, norm=True: model.features(x, layers, norm=norm,
                                                                      reshape=True),
                   static_argnums=(2, 3))


def test_golden_tokens(recorded, model):
  out = forward(model, nhwc(recorded["x"]))
  np.testing.assert_allclose(out["cls"], recorded["cls"], atol=1e-5)
  np.testing.assert_allclose(out["patches"], recorded["patch"], atol=1e-5)
  chex.assert_shape(out["storage"], (2, 0, 32))


def test_golden_features(recorded, model):
  second, last = features(model, nhwc(recorded["x"]), (-1, 1))
  for got, name in ((second, "il0"), (last, "il1")):
    np.testing.assert_allclose(got["patches"], nhwc(recorded[name]), atol=1e-5)
    np.testing.assert_allclose(got["cls"], recorded[name + "_cls"], atol=1e-5)
    chex.assert_shape(got["storage"], (2, 0, got["cls"].shape[1]))


def test_shapes_of_features():
  def shapes(model, **kwargs):
    images = jax.ShapeDtypeStruct((2, 70, 96, 3), "f4")
    maps = nnx.eval_shape(lambda m, x: m.features(x, range(4), **kwargs), model, images)
    return [x["patches"].shape for x in maps]

  assert shapes(abstract(), reshape=True) == [
    (2, 17, 24, 8), (2, 8, 12, 16), (2, 4, 6, 24), (2, 2, 3, 32)]
  assert shapes(abstract())[1] == (2, 96, 16)
  assert shapes(abstract(), reshape=True, pad=True)[1::2] == [(2, 12, 12, 16), (2, 3, 3, 32)]
  assert shapes(abstract(patch_size=16)) == [(2, 24, d) for d in DIMS]


@pytest.mark.parametrize("depths, dims, count", [
  ((3, 3, 9, 3), (96, 192, 384, 768), 27_820_128),
  ((3, 3, 27, 3), (96, 192, 384, 768), 49_454_688),
  ((3, 3, 27, 3), (128, 256, 512, 1024), 87_566_464),
  ((3, 3, 27, 3), (192, 384, 768, 1536), 196_230_336),
])
def test_parameter_counts(depths, dims, count):
  shapes = nnx.state(abstract(depths, dims))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_initialisation():
  create = lambda: nnx.state(ConvNeXt((1, 1, 1, 2), (8, 8, 8, 64), rngs=nnx.Rngs(3)))
  params = nnx.to_pure_dict(jax.jit(create)())
  block = params["stages"]["3"]
  assert (block["ls"]["gamma"] == np.float32(1e-6)).all()
  assert (block["norm"]["scale"] == 1).all() and not block["dwconv"]["bias"].any()
  for kernel in (block["mlp"]["fc1"]["kernel"], block["dwconv"]["kernel"]):
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
    assert not np.allclose(kernel[0], kernel[1])


def test_agrees_with_transformers():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  theirs = transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(
    depths=list(DEPTHS), hidden_sizes=list(DIMS), layer_scale_init_value=0.5)).eval()
  for p in theirs.parameters():
    torch.nn.init.normal_(p, std=0.3)
  arrays = {k.removeprefix("model."): v.detach().numpy() for k, v in theirs.state_dict().items()}
  ours = build(arrays, naming="huggingface")
  images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("f4")
  with torch.no_grad():
    expected = theirs(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True)
  # Stage maps grow far beyond 1 with weights this wild: a float32 tolerance is relative to that.
  for stage, got in zip(expected.hidden_states[-4:], features(ours, images, 4, False)):
    np.testing.assert_allclose(got["patches"], nhwc(stage.numpy()),
                               atol=1e-5 * float(stage.abs().max()))
  out = forward(ours, images)
  np.testing.assert_allclose(out["cls"], expected.pooler_output, atol=1e-5)
  np.testing.assert_allclose(out["patches"], expected.last_hidden_state[:, 1:], atol=1e-5)


def test_bfloat16_stays_within_a_tenth(recorded, model):
  graphdef, state = nnx.split(model)
  half = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
  out = forward(half, nhwc(recorded["x"]))
  assert out["cls"].dtype == out["patches"].dtype == jnp.bfloat16
  np.testing.assert_allclose(out["cls"].astype("f4"), recorded["cls"], atol=0.1)
  np.testing.assert_allclose(out["patches"].astype("f4"), recorded["patch"], atol=0.1)


def test_both_depthwise_convolutions():
  rng = np.random.default_rng(0)
  x, weight = rng.normal(size=(2, 2, 9, 4, 5)).astype("f4")
  kernel = rng.normal(size=(7, 7, 1, 5)).astype("f4")

  @partial(jax.jit, static_argnums=0)
  def outputs(conv, x, kernel):
    out, pullback = jax.vjp(conv, x, kernel)
    return out, *pullback(weight)

  chex.assert_trees_all_close(outputs(convnext.depthwise_sum, x, kernel),
                              outputs(convnext.depthwise_conv, x, kernel), rtol=1e-5, atol=2e-5)


def test_stochastic_depth_of_each_image():
  model = abstract((1, 1, 6, 1), DIMS, drop_path=0.8)
  keep = model._keep(jax.random.key(0), 4000)
  rates = np.linspace(0, 0.8, 9)
  np.testing.assert_allclose((keep == 0).mean(1), rates, atol=0.03)
  np.testing.assert_allclose(keep.max(1), 1 / (1 - rates), rtol=1e-6)


def test_training_forward(recorded, model):
  images = np.repeat(nhwc(recorded["x"])[:1], 24, axis=0)
  locals_ = images[:, :32, :32]

  @jax.jit
  def train(model, key):
    return model.forward_crops(images, locals_, key=key)

  outputs = [train(model, jax.random.key(i)) for i in (0, 0, 1)]
  chex.assert_trees_all_equal(outputs[0], outputs[1])
  for crops, other in zip(outputs[0], outputs[2]):
    # Four blocks of rates above 0, each kept or not: equal images go at most sixteen ways.
    assert 4 < len(np.unique(np.round(crops["cls"], 4), axis=0)) <= 16
    assert np.abs(crops["cls"] - other["cls"]).max() > 1e-3
  chex.assert_shape(outputs[0][1]["patches"], (24, 1, 32))


def test_gradient_of_every_parameter(recorded, model):
  graphdef, params = nnx.split(model)
  images = nhwc(recorded["x"])[:, :32, :32]

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    out = nnx.merge(graphdef, params)(images, key=jax.random.key(0), remat="full")
    return (out["cls"][:, ::3]**2).sum()

  _, gradient = loss(params)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
  length = float(sum((x**2).sum() for x in jax.tree.leaves(gradient)) ** 0.5)
  up, down = (loss(jax.tree.map(lambda x, g, h=h: x + h / length * g, params, gradient))[0]
              for h in (1e-3, -1e-3))
  np.testing.assert_allclose((up - down) / 2e-3, length, rtol=1e-2)


def test_bad_input():
  model = abstract()
  with pytest.raises(ValueError, match="at least 32"):
    model(jnp.zeros((1, 64, 31, 3)))
  with pytest.raises(ValueError, match=r"float \[B, H, W, C\]"):
    model(jnp.zeros((1, 64, 64, 3), jnp.uint8))
  for layers in (5, 0, [4], [-5]):
    with pytest.raises(ValueError, match="4 stages"):
      model.features(jnp.zeros((1, 32, 32, 3)), layers)
  with pytest.raises(ValueError, match="four stages"):
    abstract((1, 1), (8, 8))
