import json
import os
import pathlib
import subprocess
import sys

import pytest

from dinov3_jax import aot

pytest.importorskip("libtpu", reason="compiling for TPUs needs `pip install -e .[tpu]`")

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments):
  """The command in a process of its own: libtpu listens to the environment once."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_COMP"))}
  return subprocess.run([sys.executable, "-m", "dinov3_jax.aot", *map(str, arguments)], cwd=ROOT,
                        env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("topology, devices, mesh", [
  ("v5e:2x4", 8, ["--config.mesh.fsdp=4"]),
  ("v5p:2x2x2", 8, ["--config.mesh.fsdp=4", "--config.mesh.tensor=2"])])
def test_the_step_compiles_for_a_topology(tiny_recipe, tmp_path, topology, devices, mesh):
  """At a width at which a chip's tiles need no padding, and a depth at which what is gathered a
  block ahead is little of all that is sent."""
  done = command(
    f"--config={tiny_recipe}", f"--topology={topology}", "--json", "--fast", *mesh,
    f"--hlo={tmp_path}/step.hlo", "--config.model.width=256", "--config.model.num_heads=2",
    "--config.model.depth=12",
    "--config.dino.prototypes=4096", "--config.ibot.prototypes=4096", "--config.dino.hidden=512",
    "--config.ibot.hidden=512", "--config.dino.bottleneck=128", "--config.ibot.bottleneck=128",
    "--config.train.batch_size=32", "--config.train.dtype=bfloat16")
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  report = json.loads(done.stdout)
  assert report["devices"] == devices
  assert 0 < report["arguments"] < report["peak"] < report["memory"]
  assert report["flops_executed"] < report["flops_full"]
  assert report["sent"].keys() >= report["least"].keys() == {
    "all-gather", "all-reduce", "reduce-scatter"}
  sent, least = (sum(report[key].values()) for key in ("sent", "least"))
  assert 0.95 * least < sent < 1.05 * least
  assert report["computing"] > report["seconds_at_peak"] > 0
  # How much overlaps with less effort depends on the compiler.
  assert report["exposed"].keys() == report["sending"].keys() == report["sent"].keys()
  for kind, seconds in report["sending"].items():
    assert 0 <= report["exposed"][kind] <= seconds > 0
  assert report["sending"].keys() == report["sent"].keys()
  assert "HloModule jit_step" in (tmp_path / "step.hlo").read_text()


@pytest.mark.parametrize("arguments, said", [
  (["--topology=v9:8x8"], "libtpu knows no topology 'v9:8x8'; it wants a generation and the chips"),
  (["--topology=tpu7x:2x2x1", "--config.mesh.data=3"],  # a chip is two devices
   "the mesh data=3 x fsdp=1 x tensor=1 does not match 8 devices"),
  (["--topology=v5e:2x4", "--config.train.batch_size=12"],
   "a batch of 12 images cannot be spread over 8 data shards; take a multiple of 8"),
  (["--topology=v5e:2x4", "--config.koleo.group=4"], "KoLeo groups of 4 do not divide 2 rows"),
  (["--topology=v5e:2x4", "--config.model.width=8192", "--config.model.depth=40"],
   "the training state takes 480.1 GiB on each device, which has 15.8 GiB: spread it over more"),
])
def test_what_cannot_work_gets_one_line(tiny_recipe, arguments, said):
  done = command(f"--config={tiny_recipe}", *arguments)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  assert said in done.stderr


@pytest.mark.parametrize("arguments", [
  [], ["--config=configs/vits16.py"], ["--config=configs/vits16.py", "--topology=v5e:2x4", "x"]])
def test_usage(monkeypatch, capsys, arguments):
  monkeypatch.setattr(sys, "argv", ["aot", *arguments])
  assert aot.main() == 2
  assert capsys.readouterr().err.startswith("error: usage: python -m dinov3_jax.aot --config=")


def test_one_program_of_several_can_be_kept(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(sys, "argv", [
    "aot", "--config=configs/distill.py", "--teacher=configs/vit7b_highres.py",
    "--topology=v5e:2x4", f"--hlo={tmp_path}/step.hlo"])
  assert aot.main() == 2
  said = capsys.readouterr().err
  assert said == ("error: --hlo keeps one program, and a distillation has several: add "
                  "--part=NAME\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(monkeypatch, capsys, flag):
  monkeypatch.setattr(sys, "argv", ["aot", flag])
  assert aot.main() == 0
  assert "python -m dinov3_jax.aot --config=configs/vit7b.py --topology=" in capsys.readouterr().out
