import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from configs import base
from dinov3_jax.costs.collectives import bytes_by_kind, collectives
from dinov3_jax.models import partition, prefetch
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.train.sharding import make_mesh, on_shards, param_specs

DEPTH = 5


@functools.cache
def network(rank=0, ffn="swiglu"):
  """A small network whose blocks four devices have in parts, and a batch for it."""
  model = VisionTransformer(width=32, depth=DEPTH, num_heads=2, patch_size=8, ffn=ffn,
                            ffn_ratio=3.0, drop_path=0.5, storage_tokens=1, adapter_rank=rank,
                            rope=dict(rescale=2.0), rngs=nnx.Rngs(0))
  graph, params = nnx.split(model)
  config = base.get_config()
  config.mesh.update(data=2, fsdp=4, tensor=1)
  mesh = make_mesh(config, jax.devices()[:8])
  params = jax.tree.map(lambda x: x + 0.1, nnx.to_pure_dict(params))  # no zeros, no symmetry
  images = [jax.random.normal(jax.random.key(i), (16, side, side, 3))
            for i, side in ((1, 16), (2, 8))]
  return graph, params, param_specs(mesh, params), mesh, images


def gradients(remat="full", rank=0, learned=lambda path: True, ffn="swiglu", outputs=2):
  """`(params, images) -> (loss, gradients)` on eight devices; the loss is of so many crop kinds."""
  graph, _, layout, mesh, _ = network(rank, ffn)

  def loss(params, images):
    keep = lambda path, x: x if learned(partition.path_name(path)) else jax.lax.stop_gradient(x)
    params = jax.tree_util.tree_map_with_path(keep, params)
    parts = {name: part if name == "blocks" else partition.whole(part, layout[name], jnp.float32)
             for name, part in params.items()}
    crops = nnx.merge(graph, parts).forward_crops(
      *images, key=jax.random.key(3), remat=remat, layout=layout["blocks"])
    return sum(jnp.mean(jnp.sin(c["patches"])) for c in crops[:outputs])

  def of_shard(params, images):
    value, grads = jax.value_and_grad(loss)(params, images)
    return jax.lax.pmean(value, partition.DATA_AXES), grads

  local = jax.tree.map(partition.local_spec, layout)
  return on_shards(of_shard, mesh, (local, P(partition.DATA_AXES)), (P(), local))


@pytest.fixture
def waiting(monkeypatch):
  """Turns it off, so that every block gathers what it needs when its turn comes."""
  return lambda: monkeypatch.setattr(prefetch, "begins_with_a_cut_matrix", lambda layout: False)


@pytest.mark.parametrize("remat, ffn, outputs", [
  ("none", "swiglu", 2), ("dots", "swiglu", 2), ("dots", "mlp", 2), ("full", "swiglu", 1)])
def test_blocks_that_are_gathered_ahead_compute_the_same(remat, ffn, outputs, waiting):
  _, params, _, _, images = network(ffn=ffn)
  run = lambda: jax.jit(gradients(remat, ffn=ffn, outputs=outputs))(params, images)
  ahead = run()
  waiting()
  chex.assert_trees_all_close(ahead, run(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("remat", ["none", "dots", "full", "offload"])
def test_whole_parameters_are_not_kept_for_the_backward_pass(remat):
  _, params, layout, _, images = network()
  traced = jax.make_jaxpr(gradients(remat))(params, images)
  of_shard, = (e for e in traced.eqns if e.primitive.name == "shard_map")
  program = str(of_shard.params["jaxpr"])
  for path, spec in jax.tree_util.tree_leaves_with_path(layout["blocks"]):
    if "fsdp" in spec:
      shape = functools.reduce(lambda tree, key: tree[key.key], path, params["blocks"]).shape
      assert f"[{','.join(map(str, shape[1:]))}]" in program  # one block's
      assert f"[{','.join(map(str, shape))}]" not in program


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_little_more_is_sent(remat, waiting):
  """A block's first matrix once more in each pass, and its gradient once more."""
  _, params, _, mesh, images = network()

  def sent():
    text = jax.jit(gradients(remat)).lower(params, images).compile().as_text()
    return bytes_by_kind(collectives(text, mesh.size))

  ahead = sent()
  waiting()
  waited = sent()
  blocks = params["blocks"]
  first, last = blocks["attn"]["qkv"]["kernel"][0].nbytes, blocks["mlp"]["w3"]["kernel"][0].nbytes
  more = {"all-gather": 3 / 4 * (first + (first if remat == "full" else last)),
          "reduce-scatter": 3 / 4 * first, "all-reduce": first / 4}
  assert ahead.keys() == waited.keys()
  for kind in ahead:
    assert waited[kind] <= ahead[kind] <= waited[kind] + more[kind]


def test_what_does_not_learn_gets_no_gradient(waiting):
  _, params, _, mesh, images = network(rank=2)

  def compiled():
    learned = lambda path: "adapter" in path
    return jax.jit(gradients(rank=2, learned=learned)).lower(params, images).compile()

  ahead = compiled()
  _, grads = ahead(params, images)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.any(g) == ("adapter" in partition.path_name(path)), path
  waiting()
  summed = lambda program: bytes_by_kind(collectives(program.as_text(), mesh.size))["all-reduce"]
  assert summed(ahead) == summed(compiled())
