import subprocess
import sys


def test_it_is_the_command_that_trains():
  done = subprocess.run([sys.executable, "-m", "dinov3_jax.train", "--workdir=x"],
                        capture_output=True, text=True, timeout=60)
  assert done.returncode == 2 and done.stderr.startswith("error: --config is missing: ")
