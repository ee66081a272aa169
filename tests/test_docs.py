"""The site: every link and reference leads somewhere, and a broken one fails the build."""

import ast
import html
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from dinov3_jax import recipes
from dinov3_jax.text.settings import check_settings as check_text
from dinov3_jax.train.settings import check_settings

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md")))]


def build(source, out):
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
  return subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", source, out],
                        capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """A folder with the built site."""
  out = tmp_path_factory.mktemp("site")
  done = build(ROOT / "docs", out)
  assert done.returncode == 0, done.stderr
  return out


def test_every_link_within_the_site_leads_somewhere(site):
  pages = {path.relative_to(site): path.read_text() for path in site.glob("*.html")}
  anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
  checked = 0
  for path, text in pages.items():
    for link in re.findall(r'<a [^>]*href="([^"]*)"', text):
      place, _, anchor = urllib.parse.unquote(link).partition("#")
      if re.match(r"[a-z]+:", place):
        continue
      target = (site / path.parent / place).resolve() if place else site / path
      assert target.exists(), f"{path}: {link}"
      inner = target.relative_to(site.resolve()) if place else path
      assert not anchor or anchor in anchors.get(inner, [anchor]), f"{path}: {link}"
      checked += 1
  assert checked > 500


def test_docstrings_come_out_as_they_are_meant(site):
  text = html.unescape(re.sub(r"<[^>]+>", "", (site / "api.html").read_text()))
  assert "weights: where the parameters" not in text and "where the parameters come from" in text
  assert "dinov3_jax.main.train(config" in text and '{"train.steps": 100' in text
  assert "\\*" not in text and "**how" in text and "`" not in text


def test_every_page_is_in_the_menu(site):
  menu = (site / "index.html").read_text()
  for page in PAGES[1:]:
    assert f'href="{pathlib.Path(page).stem}.html"' in menu or page == "docs/index.md"


def test_a_broken_link_fails_the_build(tmp_path):
  source = tmp_path / "docs"
  (source / "_static").mkdir(parents=True)
  shutil.copy(ROOT / "docs" / "conf.py", source)
  (source / "other.md").write_text("# Other\n")
  broken = ["[a](nothing.md)", "[a](other.md#no-such-part)", "{py:obj}`dinov3_jax.no_such_name`",
            "[a](../no_such_file.py)"]
  (source / "index.md").write_text("# Title\n\n```{toctree}\nother\n```\n\n" + "\n".join(broken))
  done = build(source, tmp_path / "out")
  assert done.returncode == 1
  for said in ("nothing.md", "no-such-part", "there is no dinov3_jax.no_such_name", "no_such_file"):
    assert said in done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_to_files_of_this_folder(page):
  text = (ROOT / page).read_text()
  for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
    if not re.match(r"[a-z]+:", link):
      assert (ROOT / page).parent.joinpath(link).exists(), link


def value_of(text):
  """A setting's value as the command line takes it."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return {"true": True, "false": False}.get(text.lower(), text)


def trainings(text):
  """The recipes that a page trains, in Python or by a command, and what it changes in each."""
  call = r'dinov3_jax\.train\(\s*"([^"]+)",\s*"[^"]*"(?:,\s*(\{[^}]*\}))?\)'
  for name, changes in re.findall(call, text):
    yield name, ast.literal_eval(changes or "{}")
  command = r"^(?:dinov3 train|python -m dinov3_jax\.(?:main|train)) (.*)$"
  for line in re.findall(command, text.replace("\\\n", " "), re.MULTILINE):
    options = dict(option.split("=", 1) for option in shlex.split(line, comments=True)
                   if option.startswith("--config") and "=" in option)
    if recipe := options.pop("--config", None):
      yield recipe, {key.removeprefix("--config."): value_of(value)
                     for key, value in options.items()}


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_train_has_settings_that_fit_together(page):
  text = (ROOT / page).read_text()
  for name, changes in trainings(text):
    if ":transformers:" in name:  # comes from the hub
      continue
    config = recipes.load(name, changes)
    (check_text if "text" in config else check_settings)(config)


def test_pages_train_something():
  found = [x for page in PAGES for x in trainings((ROOT / page).read_text())]
  assert len(found) > 10 and any(changes for _, changes in found)


def test_recipes_that_pages_show_have_settings_that_fit_together():
  blocks = [block for page in PAGES for block in re.findall(
    r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    if "def get_config(" in block]
  assert blocks
  for block in blocks:
    names = {}
    exec(block, names)
    check_settings(names["get_config"]())
