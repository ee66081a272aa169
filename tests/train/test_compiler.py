import pytest

from dinov3_jax.train import compiler


@pytest.mark.parametrize("text, said", [
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 265.82G of 95.74G hbm. "
   "Exceeded hbm capacity by 170.08G.\n\nTotal hbm usage >= 266G", "265.82G of 95.74G"),
  ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
   "(32.08G) exceeds available HBM (31.25G).",
   "beside its arguments it takes 32.08 GiB, of 31.25 GiB; take more devices for mesh.fsdp"),
  ("INTERNAL: it did not work\nat 0x1\nat 0x2", "the compiler refuses the step: INTERNAL: it did")])
def test_what_the_compiler_says_against_a_step_becomes_one_line(text, said):
  explained = compiler.explain(ValueError(text))
  assert said in explained and "\n" not in explained


def test_a_platform_that_is_not_listed_gets_no_options():
  assert compiler.options("cpu") == {}
  assert compiler.options("tpu") == compiler.OPTIONS["tpu"] != {}
