"""The few parts of `tf.train.Example`, a protocol buffer, that records of images need.

Wire format: https://protobuf.dev/programming-guides/encoding/. An Example is a map from names to
lists of bytes (1), floats (2) or integers (3), of which the first and the last are read here.
"""

from collections.abc import Callable, Iterator

from dinov3_jax.data.decode import DamagedImage

IMAGES = ("image", "image/encoded", "jpg", "png", "jpeg", "webp")
ENCODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


def image(record: bytes, name: Callable[[], str]) -> bytes:
  """The encoded image of a record, which is one, or an Example with one.

  Raises:
    DamagedImage: there is none; with what `name` gives.
  """
  if record.startswith(ENCODED):
    return record
  try:
    features = parse(record)
  except ValueError as error:
    raise DamagedImage(name(), "its record is neither an image nor an example") from error
  for key in IMAGES:
    if features.get(key) and isinstance(features[key][0], bytes):
      return features[key][0]
  raise DamagedImage(name(), "its record has no image; it has " + ", ".join(sorted(features)))


def parse(record: bytes) -> dict[str, list[bytes] | list[int]]:
  """The lists of bytes and of integers in an Example, by name.

  Raises:
    ValueError: it is none.
  """
  try:
    features = _parse(record)
  except (IndexError, KeyError, TypeError, AttributeError) as error:  # of bytes that are anything
    raise ValueError("no example") from error
  if not features:
    raise ValueError("no features")
  return features


def _parse(record: bytes) -> dict[str, list[bytes] | list[int]]:
  features = {}
  for tag, body in _fields(record):
    for inner, entry in _fields(body) if tag == 1 else ():
      if inner != 1:
        continue
      parts = dict(_fields(entry))
      values = []
      for kind, listed in _fields(parts.get(2, b"")):
        for _, value in _fields(listed):
          if kind == 1 or (kind == 3 and isinstance(value, int)):
            values.append(value)
          elif kind == 3:
            values += _integers(value)
      features[parts[1].decode()] = values
  return features


def serialize(features: dict[str, bytes | int]) -> bytes:
  """An Example with one value under each name."""
  entries = b""
  for key, value in features.items():
    if isinstance(value, int):
      feature = _field(3, _field(1, _varint(value & (2**64 - 1))))
    else:
      feature = _field(1, _field(1, value))
    entries += _field(1, _field(1, key.encode()) + _field(2, feature))
  return _field(1, entries)


def _field(number: int, body: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  out.append(value)
  return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
    if shift > 63:
      raise ValueError("a number has no end")


def _integers(data: bytes) -> list[int]:
  values, at = [], 0
  while at < len(data):
    value, at = _read_varint(data, at)
    values.append(value - 2**64 if value >> 63 else value)
  return values


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
  """Number and value of each field of a message."""
  at = 0
  while at < len(data):
    tag, at = _read_varint(data, at)
    kind = tag & 7
    if kind == 0:
      value, at = _read_varint(data, at)
      yield tag >> 3, value - 2**64 if value >> 63 else value
      continue
    if kind == 2:
      size, at = _read_varint(data, at)
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
    else:
      raise ValueError("no such kind of field")
    if at + size > len(data):
      raise ValueError("a field is cut")
    yield tag >> 3, data[at : at + size]
    at += size
