import subprocess

import pytest

from dinov3_jax import arguments, completion


@pytest.fixture(autouse=True)
def called_as_before(monkeypatch):
  monkeypatch.setattr(arguments, "_caller", arguments.MODULE)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
  """The path of a script that prints what bash would offer for the words of its arguments."""
  path = tmp_path_factory.mktemp("completion") / "offer.sh"
  path.write_text(completion.shtab.complete(completion.parser(), shell="bash") + """
COMP_WORDS=(dinov3 "$@") COMP_CWORD=$#
_shtab_dinov3
printf '%s\\n' "${COMPREPLY[@]}"
""")
  return path


@pytest.mark.parametrize("words, offered", [
  (["ev"], {"evaluate"}),
  (["features", "--tok"], {"--tokens"}),
  (["features", "--tokens", ""], {"cls", "patches", "all"}),
  (["train", "--config.train.st"], {"--config.train.steps"}),
  (["train", "--config.teacher_te"], set()),
  (["export", "--format", "h"], {"hf"}),
  (["evaluate", "kn"], {"knn"}),
  (["curate", "sam"], {"sample"}),
  (["completion", "z"], {"zsh"}),
])
def test_what_bash_offers(script, words, offered):
  done = subprocess.run(["bash", script, *words], capture_output=True, text=True, check=True)
  assert set(done.stdout.split()) == offered and not done.stderr


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_for_every_shell(shell, capsys):
  assert completion.main([shell]) == 0
  out, err = capsys.readouterr()
  assert "dinov3" in out and "visualize" in out and not err


@pytest.mark.parametrize("wrong", [[], ["fish"], ["bash", "zsh"]])
def test_an_unknown_shell_is_one_line(wrong, capsys):
  assert completion.main(wrong) == 2
  assert capsys.readouterr().err == "error: give one shell: dinov3 completion bash|zsh|tcsh\n"
