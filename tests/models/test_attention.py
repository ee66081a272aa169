import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.models.attention import (
  LONG,
  attention,
  check_cudnn,
  choose,
  cudnn_attention,
  flash_attention,
  is_on_one_device,
  long_attention,
)
from dinov3_jax.models.layers import Block
from dinov3_jax.models.vit import VisionTransformer
from tests.chips import run_for_tpus

FORWARD, BACKWARD = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("


@pytest.fixture
def cudnn(monkeypatch):
  """Lets programs for NVIDIA GPUs be traced where cuDNN is not installed."""
  monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version",
                      lambda: 91000)


def assert_same_attention(f, g, tokens, width, scale):
  """Their values and gradients for random queries, keys and values."""
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, tokens, 3, width)) * scale
  weight = jax.random.normal(jax.random.key(1), (2, tokens, 3, width))
  run = lambda f: jax.jit(jax.value_and_grad(
    lambda *args: jnp.vdot(f(*args), weight), argnums=(0, 1, 2)))(q, k, v)
  for ours, theirs in zip(jax.tree.leaves(run(f)), jax.tree.leaves(run(g))):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def on_mesh(devices, shape=(4, LONG, 2, 64), dtype=jnp.float32):
  """A shape whose first axis is spread over so many devices."""
  mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("data")))


def program(f, *args, platform):
  """The program of f for a platform that need not be there."""
  return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def make_network():
  """The graph of a ViT of two heads of 64, and its parameters' shapes."""
  graph, params = nnx.split(nnx.eval_shape(lambda: VisionTransformer(
    width=128, depth=2, num_heads=2, rngs=nnx.Rngs(0))))
  return {"backbone": graph}, {"backbone": nnx.to_pure_dict(params)}


def test_attention_is_that_of_jax():
  assert_same_attention(attention, jax.nn.dot_product_attention, 7, 16, 3)


def test_attention_survives_large_scores():
  q = jnp.full((1, 5, 1, 4), 300.0)
  v = jnp.arange(20.0).reshape(1, 5, 1, 4)
  np.testing.assert_allclose(attention(q, q, v)[0, 0, 0], v.mean(1)[0, 0])


def test_the_kernel_for_long_sequences_computes_attention_and_ignores_its_padding():
  kernel = functools.partial(flash_attention, interpret=True)
  assert_same_attention(kernel, attention, 390, 64, 1)


def test_a_program_knows_that_it_is_for_one_device(monkeypatch):
  def answers(x, **options):
    said = []
    body = lambda x, _: (x, said.append(is_on_one_device(x)))
    jax.jit(lambda x: jax.lax.scan(body, 2 * x, length=2)[0], **options).lower(x)
    return said[-1]

  plain, spread = jax.ShapeDtypeStruct((4, 2), jnp.float32), on_mesh(4, (4, 2))
  assert answers(on_mesh(1, (4, 2)))
  assert not answers(spread)
  assert not answers(plain)  # of several devices
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert not answers(plain)
  assert not answers(plain, in_shardings=spread.sharding)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert answers(plain)
  assert not answers(spread)  # for a topology that is not there


def test_the_kernel_is_for_one_tpu_and_for_nothing_that_is_spread():
  kernel = lambda x, platform: "tpu_custom_call" in program(
    lambda x: long_attention(x, x, x), x, platform=platform)
  assert kernel(on_mesh(1), "tpu")
  assert not kernel(on_mesh(1), "cpu")
  assert not kernel(on_mesh(1), "cuda")
  assert not kernel(on_mesh(4), "tpu")


@pytest.mark.parametrize("tokens", [6, 7])
def test_what_cudnn_computes_is_attention_and_its_padding_is_ignored(tokens):
  ours = functools.partial(cudnn_attention, implementation="xla")
  assert_same_attention(ours, attention, tokens, 16, 3)


@pytest.mark.parametrize("tokens, mask", [(6, "NO_MASK"), (7, "PADDING")])
def test_gpus_are_given_the_kernel_of_cudnn(cudnn, tokens, mask):
  x = jax.ShapeDtypeStruct((2, tokens, 3, 64), jnp.bfloat16)
  gradient = jax.grad(lambda x: cudnn_attention(x, x, x).astype(jnp.float32).sum())
  text = program(gradient, x, platform="cuda")
  assert FORWARD in text and BACKWARD in text
  assert f'\\22mask_type\\22: \\22{mask}\\22' in text
  assert f"tensor<2x{tokens + tokens % 2}x3x64xbf16>" in text


def test_in_training_each_device_has_its_own_heads(cudnn):
  mesh = jax.make_mesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
  place = NamedSharding(mesh, P("data"))
  run = jax.shard_map(lambda x: cudnn_attention(x, x, x), mesh=mesh, in_specs=P("data"),
                      out_specs=P("data"), axis_names={"data"}, check_vma=False)
  shape = lambda heads: jax.ShapeDtypeStruct((2, 6, heads, 64), jnp.bfloat16, sharding=place)
  text = program(run, shape(4), platform="cuda")
  assert FORWARD in text and "tensor<1x6x2x64xbf16>" in text
  with pytest.raises(ValueError, match="cannot cut 3 heads over 2 devices"):
    program(run, shape(3), platform="cuda")


@pytest.mark.parametrize("platform, dtype, width, said", [
  ("cpu", jnp.bfloat16, 64, "is for NVIDIA GPUs, not for a cpu: take 'auto'"),
  ("tpu", jnp.bfloat16, 64, "is for NVIDIA GPUs, not for a tpu: take 'auto'"),
  ("gpu", jnp.float32, 64, "computes in bfloat16 or float16, not in float32"),
  ("gpu", jnp.bfloat16, 100, "multiple of 8, but got 100. Take 'auto'")])
def test_what_cudnn_cannot_do_is_said_in_one_line(cudnn, platform, dtype, width, said):
  with pytest.raises(ValueError, match=said) as caught:
    check_cudnn(platform, jnp.dtype(dtype), 2, width)
  assert "\n" not in str(caught.value)


def test_a_gpu_without_cudnn_is_said(monkeypatch):
  check = functools.partial(check_cudnn, "gpu", jnp.dtype(jnp.bfloat16), 2)
  monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", None)
  with pytest.raises(ValueError, match=r"cuDNN is not detected\. Take 'auto'"):
    check(64)


def test_cudnn_does_what_networks_need(cudnn):
  for width in (64, 128):
    check_cudnn("gpu", jnp.dtype(jnp.bfloat16), 2, width)


def test_a_network_computes_attention_as_asked(cudnn):
  graphs, shapes = make_network()
  half = jnp.dtype(jnp.bfloat16)
  assert choose(graphs, shapes, "auto", "gpu", half) is graphs
  images = jax.ShapeDtypeStruct((2, 32, 48, 3), half)
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, half), shapes["backbone"])
  calls = {}
  for choice in ("auto", "xla", "cudnn"):
    graph = choose(graphs, shapes, choice, "gpu", half)["backbone"]
    run = lambda params, images, graph=graph: nnx.merge(graph, params).forward_crops(images)[0]
    calls[choice] = FORWARD in program(run, params, images, platform="cuda")
  assert calls == dict(auto=False, xla=False, cudnn=True)


def test_xla_is_xla_at_any_length():
  graphs, shapes = make_network()
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes["backbone"])
  images = on_mesh(1, (1, 512, 512, 3))
  for choice, has_kernel in (("auto", True), ("xla", False)):
    graph = choose(graphs, shapes, choice, "tpu", jnp.dtype(jnp.float32))["backbone"]
    run = lambda params, images, graph=graph: nnx.merge(graph, params).forward_crops(images)[0]
    assert ("tpu_custom_call" in program(run, params, images, platform="tpu")) == has_kernel


def test_an_unknown_choice_and_a_network_without_attention():
  graphs, shapes = make_network()
  with pytest.raises(ValueError, match="must be auto, xla or cudnn, not 'flash'"):
    choose(graphs, shapes, "flash", "gpu", jnp.dtype(jnp.bfloat16))
  graph, params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
  chosen = choose({"head": graph}, {"head": params}, "cudnn", "cpu", jnp.dtype(jnp.float32))
  assert chosen["head"] is graph


def test_causal_attention_stays_causal():
  block = Block(width=16, num_heads=2, ffn="mlp", ffn_ratio=2.0, ffn_align=8, qkv_bias=True,
                proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm", norm_eps=1e-6,
                layerscale=1.0, causal=True, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 4, 16))
  before = block(x)
  block.set_attributes(attend=attention)
  np.testing.assert_array_equal(block(x), before)


PROGRAM = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from dinov3_jax import aot
from dinov3_jax.models.vit import VisionTransformer

devices = aot.topology_devices("v5e:2x4")
graph, params = nnx.split(nnx.eval_shape(lambda: VisionTransformer(
  width=128, depth=2, num_heads=2, storage_tokens=4, rngs=nnx.Rngs(0))))
for count in (1, 2):
  mesh = Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))
  place = lambda x, spec=P(): jax.ShapeDtypeStruct(
    x.shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
  images = place(jax.ShapeDtypeStruct((2, 512, 528, 3), jnp.bfloat16), P("data"))
  weights = jax.tree.map(place, nnx.to_pure_dict(params))
  tokens = lambda p, x: nnx.merge(graph, p)(x)["patches"]
  loss = lambda p, x: jnp.sum(nnx.merge(graph, p).forward_crops(x)[0]["patches"] ** 2)
  for run in (tokens, jax.grad(loss)):
    print(count, jax.jit(run).lower(weights, images).compile().as_text().count("tpu_custom_call"))
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_one_chip_and_leaves_several_to_the_compiler():
  inference, gradient, *several = [line.split() for line in run_for_tpus(PROGRAM)]
  assert int(inference[1]) >= 1 and int(gradient[1]) >= 3  # forward, and two for the gradients
  assert several == [["2", "0"], ["2", "0"]]
