"""The work of one training step in PyTorch, to measure ours against; `step.py --torch` runs it.

The backbone is the DINOv3 ViT of `transformers`; heads, losses, AdamW and EMA are written out with
what PyTorch has fastest on a CPU.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel


class Head(nn.Module):

  def __init__(self, width, settings):
    super().__init__()
    hidden, bottleneck = settings.hidden, settings.bottleneck
    self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden),
                             nn.GELU(), nn.Linear(hidden, bottleneck))
    self.last_layer = nn.Linear(bottleneck, settings.prototypes, bias=False)

  def forward(self, x):
    return self.last_layer(F.normalize(self.mlp(x), dim=-1))


@torch.no_grad()
def sinkhorn(logits, temperature):
  q = torch.exp((logits.float() - logits.max()) / temperature).T
  k, b = q.shape
  q /= q.sum()
  for _ in range(3):
    q /= q.sum(1, keepdim=True)
    q /= k
    q /= q.sum(0, keepdim=True)
    q /= b
  return (q * b).T


def cross_entropy(student, targets):
  return -(targets * F.log_softmax(student.float() / 0.1, dim=-1)).sum(-1)


def koleo(x):
  x = F.normalize(x, dim=-1)
  with torch.no_grad():
    nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
  return -torch.log((x - x[nearest]).norm(dim=-1) + 1e-8).mean()


def make_step(config, batch):
  """A function that trains one step on `batch` (our layout) with the model of `config`."""
  torch.manual_seed(0)
  m = config.model
  vit = DINOv3ViTConfig(
    patch_size=m.patch_size, hidden_size=m.width, num_hidden_layers=m.depth,
    num_attention_heads=m.num_heads, intermediate_size=int(m.width * m.ffn_ratio),
    num_register_tokens=m.storage_tokens, layerscale_value=m.layerscale, attn_implementation="sdpa")
  student = nn.ModuleDict(dict(backbone=DINOv3ViTModel(vit), dino=Head(m.width, config.dino),
                               ibot=Head(m.width, config.ibot)))
  teacher = copy.deepcopy(student).eval().requires_grad_(False)
  optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.04, fused=True)
  mean, std = (torch.tensor(x) for x in (config.crops.mean, config.crops.std))
  prefix, temperature = 1 + m.storage_tokens, 0.04
  images = config.train.batch_size

  def prepare(crops):
    x = (torch.from_numpy(crops).flatten(0, 1).float() / 255 - mean) / std
    return x.permute(0, 3, 1, 2).contiguous()

  masks = torch.from_numpy(batch["masks"]).flatten(0, 1)
  indices = torch.from_numpy(batch["mask_indices"][0]).long()
  weights = torch.from_numpy(batch["mask_weights"][0])
  masked = lambda tokens: tokens[:, prefix:].flatten(0, 1)[indices]

  def step():
    global_crops, local_crops = prepare(batch["global_crops"]), prepare(batch["local_crops"])
    with torch.no_grad():
      tokens = teacher["backbone"](global_crops).last_hidden_state
      dino_targets = sinkhorn(teacher["dino"](tokens[:, 0]), temperature).view(images, 2, -1)
      ibot_targets = sinkhorn(teacher["ibot"](masked(tokens)), temperature)
    student.train()
    tokens = student["backbone"](global_crops, bool_masked_pos=masks).last_hidden_state
    local_cls = student["backbone"](local_crops).last_hidden_state[:, 0]
    logits = student["dino"](torch.cat([tokens[:, 0], local_cls]))
    global_logits = logits[:2 * images].view(images, 2, -1)
    local_logits = logits[2 * images:].view(images, -1, logits.shape[-1])
    local = cross_entropy(local_logits, dino_targets.sum(1, keepdim=True)).mean() / 2
    across = cross_entropy(global_logits, dino_targets.flip(1)).mean()
    ibot = (weights * cross_entropy(student["ibot"](masked(tokens)), ibot_targets)).sum()
    cls = tokens[:, 0].view(images, 2, -1)
    spread = koleo(cls[:, 0]) + koleo(cls[:, 1])
    loss = 8 / 9 * local + across / 9 + ibot / (2 * images) + 0.1 * spread
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for module in student.values():
      nn.utils.clip_grad_norm_(module.parameters(), 3.0, foreach=True)
    optimizer.step()
    with torch.no_grad():
      old, new = list(teacher.parameters()), list(student.parameters())
      torch._foreach_mul_(old, 0.992)
      torch._foreach_add_(old, new, alpha=0.008)

  return step
