"""The same images in a folder and in files of every kind."""

import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

KINDS = ("tar", "tars", "zip", "parquet", "array_record", "manifest", "bucket", "bucket tar")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
  """Indices and caches of a test are its own."""
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(folder))
  return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """A folder of 40 images in two classes."""
  root, rng = tmp_path_factory.mktemp("same") / "folder", np.random.default_rng(0)
  for i in range(40):
    path = root / "ab"[i % 2] / f"{i:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
  return root


def below(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """The images of a folder by name, in the order of their names."""
  return {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png"))}


def write_tar(path: pathlib.Path, members: dict[str, bytes | pathlib.Path]):
  with tarfile.open(path, "w") as tar:
    for name, data in members.items():
      if isinstance(data, bytes):
        (path.parent / "member").write_bytes(data)
        data = path.parent / "member"
      tar.add(data, name)


@pytest.fixture(scope="session")
def same(images):
  """`same(kind)`: the spec of the same images in files of a kind."""
  root, names = images.parent, below(images)

  def make(kind):
    folder = root / kind.replace(" ", "_")
    if kind.startswith("bucket"):
      return bucket(kind, names, make)
    if folder.exists():
      return spec(kind, folder)
    folder.mkdir()
    if kind == "tar":
      write_tar(folder / "x.tar", names)
    elif kind == "tars":
      chosen = list(names)
      for i in range(3):  # as they came, not in the order of their names
        write_tar(folder / f"{i:03}.tar", {name: names[name] for name in chosen[2 - i :: 3]})
    elif kind == "zip":
      with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for i, (name, path) in enumerate(names.items()):
          archive.write(path, name, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
    elif kind == "parquet":
      write_parquet(folder / "x.parquet", names)
    elif kind == "array_record":
      from dinov3_jax.data import packing
      packing.pack(str(images), folder, workers=1)
    else:
      (folder / "list.csv").write_text("".join(
        f"../folder/{name},{name[0]}\n" for name in names))
    return spec(kind, folder)

  return make


def spec(kind: str, folder: pathlib.Path) -> str:
  path = {"tar": "x.tar", "zip": "x.zip", "parquet": "x.parquet", "array_record": ""}.get(kind)
  if path is not None:
    return str(folder / path)
  return str(folder / "*.tar") if kind == "tars" else f"manifest:{folder / 'list.csv'}"


def bucket(kind: str, names: dict[str, pathlib.Path], make) -> str:
  import fsspec
  fs = fsspec.filesystem("memory")
  if kind == "bucket tar":
    fs.pipe("/tars/x.tar", pathlib.Path(make("tar")).read_bytes())
    return "memory://tars/x.tar"
  for name, path in names.items():
    fs.pipe(f"/bucket/{name}", path.read_bytes())
  return "memory://bucket"


def write_parquet(path: pathlib.Path, names: dict[str, pathlib.Path], group: int = 7):
  import pyarrow as pa
  from pyarrow import parquet
  table = pa.table({"image": [{"bytes": path.read_bytes(), "path": name}
                              for name, path in names.items()],
                    "label": ["ab".index(name[0]) for name in names]})
  features = '{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
  parquet.write_table(table.replace_schema_metadata({"huggingface": features}), path,
                      row_group_size=group)
