import asyncio
import os

from etils import epath

from dinov3_jax.data import durable as files
from dinov3_jax.train import durable


def test_a_folder_takes_its_name_when_all_in_it_is_on_disk(tmp_path, monkeypatch):
  final, events, sync = tmp_path / "7", [], files.sync

  def note_sync(path):
    sync(path)
    events.append(path.name)

  for module in (files, durable):
    monkeypatch.setattr(module, "sync", note_sync)

  async def write():
    temporary = durable.DurablePath.from_final(epath.Path(final))
    folder = await temporary.create()
    (folder / "arrays").write_text("data")
    assert not final.exists()
    await temporary.finalize()
    return folder.name

  temporary = asyncio.run(write())
  assert (final / "arrays").read_text() == "data"
  assert os.listdir(tmp_path) == ["7"] and temporary != "7"
  assert events.index("arrays") < events.index(temporary) < events.index("7")
  assert events[-2:] == ["7", tmp_path.name]  # the name itself stands in the folder above
