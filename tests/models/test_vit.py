import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models import rope as rope_module
from dinov3_jax.models import vit
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights.naming import unflatten

SIZE = dict(width=64, depth=3, num_heads=2, storage_tokens=4, mask_k_bias=True)
MODELS = dict(
    vit_mlp=dict(norm_eps=1e-5),
    vit_swiglu=dict(norm_eps=1e-5, ffn="swiglu", ffn_ratio=3.0, ffn_align=64, qkv_bias=False,
                    untie_global_and_local_cls_norm=True),
    vit_rms_untied=dict(norm="rmsnorm", norm_eps=1e-5, ffn="swiglu", ffn_ratio=6.0,
                        untie_cls_and_patch_norms=True),
)


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def nhwc(images):
  return np.moveaxis(images, 1, -1)


@pytest.fixture(scope="module", params=MODELS)
def outputs(request, golden):
  """The reference's outputs of one model, and all of ours from one compiled call."""
  g = golden(request.param)
  make = lambda: VisionTransformer(**SIZE, **MODELS[request.param], rngs=nnx.Rngs(0))
  graph, shapes = nnx.split(nnx.eval_shape(make))
  arrays = {k.removeprefix("sd/"): v for k, v in g.items() if k.startswith("sd/")}
  params = unflatten(arrays, nnx.to_pure_dict(shapes))

  @jax.jit
  def run(params, x, xl, mask):
    model = nnx.merge(graph, params)
    return dict(
        plain=model(x), masked=model(x, mask), prenorm=model.features(x, 1, norm=False)[0],
        chosen=model.features(x, [0, 2], reshape=True),
        last=model.features(x, 2, norm=False), training=model.forward_crops(x, xl, mask),
        remat=model.forward_crops(x, xl, mask, remat="full"),
        globals_alone=model.forward_crops(x))

  return g, jax.device_get(run(params, nhwc(g["x"]), nhwc(g["xl"]), g["mask"]))


def test_tokens(outputs):
  g, ours = outputs
  close(ours["plain"]["cls"], g["cls"])
  close(ours["plain"]["storage"], g["storage"])
  close(ours["plain"]["patches"], g["patch"])


def test_tokens_before_the_norm(outputs):
  g, ours = outputs
  tokens = ours["prenorm"]
  close(np.concatenate([tokens["cls"][:, None], tokens["storage"], tokens["patches"]], 1),
        g["prenorm"])


def test_masks(outputs):
  g, ours = outputs
  close(ours["masked"]["cls"], g["m_cls"])
  close(ours["masked"]["patches"], g["m_patch"])


def test_intermediate_layers(outputs):
  g, ours = outputs
  first, last = ours["chosen"]
  close(np.moveaxis(first["patches"], -1, 1), g["il0_patch"])
  close(first["cls"], g["il0_cls"])
  close(first["storage"], g["il0_extra"])
  close(np.moveaxis(last["patches"], -1, 1), g["il1_patch"])
  close(ours["last"][0]["patches"], g["il_nonorm0"])


def test_training_forward_over_two_crop_sizes(outputs):
  g, ours = outputs
  for forward in ("training", "remat"):
    global_tokens, local_tokens = ours[forward]
    close(global_tokens["cls"], g["tr_g_cls"])
    close(global_tokens["patches"], g["tr_g_patch"])
    close(local_tokens["cls"], g["tr_l_cls"])
    close(local_tokens["patches"], g["tr_l_patch"])


def test_training_forward_of_global_crops_alone(outputs):
  g, ours = outputs
  tokens, nothing = ours["globals_alone"]
  assert nothing is None
  close(tokens["cls"], g["cls"])
  close(tokens["patches"], g["patch"])


def tiny(**changes):
  settings = dict(width=32, depth=2, num_heads=2, patch_size=8, layerscale=0.5)
  return nnx.jit(lambda: VisionTransformer(**settings | changes, rngs=nnx.Rngs(0)))()


def test_layers_are_counted_as_a_sequence_is():
  model, images = tiny(depth=3), jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  choices = [(-1, 0), (0, 2), 2, (1, 2)]
  features = nnx.jit(lambda model: [model.features(images, layers) for layers in choices])(model)
  for a, b in (features[:2], features[2:]):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_errors_of_a_call():
  model = tiny()
  for layers in (0, 3, (2,), (-3,)):
    with pytest.raises(ValueError, match="do not fit a model of 2 blocks"):
      model.features(np.zeros((1, 16, 16, 3), np.float32), layers)
  with pytest.raises(ValueError, match="12x16 are not a whole number of patches of 8"):
    model(np.zeros((1, 12, 16, 3), np.float32))
  for shape, dtype in [((1, 16, 16, 3), np.uint8), ((16, 16, 3), np.float32)]:
    with pytest.raises(ValueError, match=r"images must be float \[B, H, W, C\], as .*preprocess"):
      model(np.zeros(shape, dtype))


def test_padding():
  model = tiny()
  images = np.random.default_rng(0).normal(size=(2, 13, 24, 3)).astype(np.float32)
  padded = np.pad(images, ((0, 0), (0, 3), (0, 0), (0, 0)))
  jax.tree.map(np.testing.assert_array_equal, model(images, pad=True), model(padded))
  features, = model.features(images, reshape=True, pad=True)
  assert features["patches"].shape == (2, 2, 3, 32)
  np.testing.assert_array_equal(features["patches"][1, 1, 2], model(padded)["patches"][1, 5])


def test_a_second_call_compiles_nothing():
  model, images = tiny(width=16), np.zeros((1, 16, 16, 3), np.float32)
  model(images)
  model.features(images, [0])
  before = vit._tokens._cache_size(), vit._features._cache_size()
  tiny(width=16)(images + 1)
  model.features(images + 1, (0,))
  assert (vit._tokens._cache_size(), vit._features._cache_size()) == before


def test_blocks_after_the_last_chosen_one_are_not_computed():
  model, images = tiny(depth=4), np.zeros((1, 16, 16, 3), np.float32)
  run = lambda layers: str(jax.make_jaxpr(lambda x: model.features(x, layers))(images))
  assert "length=2" in run([0, 1]) and "length=4" in run([0, 3])


def test_heads_divide_the_width():
  with pytest.raises(ValueError, match=r"width 32 is not a multiple of model\.num_heads 3"):
    tiny(num_heads=3)


def test_rope_is_drawn_for_each_block_and_crop_kind(monkeypatch):
  seen = []
  tables = rope_module.Rope.tables

  def spy(self, height, width, key=None):
    jax.debug.callback(lambda data: seen.append((height, tuple(data.tolist()))),
                       jax.random.key_data(key))
    return tables(self, height, width, key)

  monkeypatch.setattr(rope_module.Rope, "tables", spy)
  model = tiny(depth=3, rope=dict(rescale=2.0))
  model.forward_crops(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 3)), key=jax.random.key(0))
  jax.effects_barrier()
  assert sorted(height for height, _ in seen) == [1] * 3 + [2] * 3
  assert len({key for _, key in seen}) == 6


def test_randomness_is_for_the_student_alone():
  """Without a key a model with every augmentation is a plain one; with one it follows the key."""
  images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  plain, random = tiny(), tiny(drop_path=0.5, rope=dict(shift=0.2, jitter=1.5, rescale=2.0))
  forward = nnx.jit(lambda model, images, key: model.forward_crops(images, key=key)[0]["patches"])
  expected = forward(plain, images, None)
  np.testing.assert_array_equal(forward(random, images, None), expected)
  first, again, other = (forward(random, images, jax.random.key(i)) for i in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3 and np.abs(first - expected).max() > 1e-3


def test_bfloat16_stays_bfloat16():
  model = tiny(storage_tokens=2, untie_cls_and_patch_norms=True)
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  graph, params = nnx.split(model)
  run = jax.jit(lambda *args: nnx.merge(graph, args[0])(args[1]))
  expected = run(params, images)
  tokens = run(*jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, images)))
  assert {x.dtype for x in tokens.values()} == {jnp.dtype("bfloat16")}
  for name, x in tokens.items():
    np.testing.assert_allclose(np.float32(x), expected[name], atol=0.1)


def test_initial_statistics():
  model = tiny(width=192, depth=4, num_heads=3, patch_size=16, layerscale=1e-5, storage_tokens=4)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  leaves = {"/".join(str(k.key) for k in path): np.asarray(x)
            for path, x in jax.tree_util.tree_leaves_with_path(params)}
  for name, x in leaves.items():
    if name == "patch_embed/kernel":
      bound = 1 / np.sqrt(3 * 16 * 16)
      assert 0.999 * bound < np.abs(x).max() <= bound
      np.testing.assert_allclose(x.std(), bound / np.sqrt(3), rtol=0.01)
    elif name == "patch_embed/bias":
      assert 0.02 < np.abs(x).max() <= 1 / np.sqrt(3 * 16 * 16)
    elif name.endswith("kernel"):
      # As a plain normal, tails and all: nothing is cut off at two deviations.
      assert len(np.unique(x)) > 0.9 * x.size
      for block in x:
        np.testing.assert_allclose(block.std(), 0.02, rtol=0.02)
        assert abs(block.mean()) < 2e-4 and np.abs(block).max() > 0.07
    elif name in ("cls_token", "storage_tokens"):
      np.testing.assert_allclose(x.std(), 0.02, rtol=0.2)
    else:
      expected = {"bias": 0, "mask_token": 0, "scale": 1, "gamma": np.float32(1e-5)}
      np.testing.assert_array_equal(x, expected[name.split("/")[-1]], err_msg=name)
