"""Prepared data sets of TensorFlow Datasets (TFDS), read without TensorFlow.

No network access is needed.

Only files are read. A builder made from code would query Google's bucket about a data set that is absent, and prepare
it by downloading: a machine without internet access would wait for minutes.
"""

from collections.abc import Iterator
import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.data.dataset import IMAGENET_STATS, RawSplits, Split
from smskd_jax.data.lazy_images import CropConfig, LazyImages
from smskd_jax.errors import UserError

READ_BATCH = 1024  # examples decoded per call


def read_tfds(argument: str, folder: str) -> RawSplits:
  """The data set NAME, NAME/CONFIG or NAME/CONFIG:VERSION in the data_dir `folder`.

  "": TFDS's default data_dir.

  The data set must be prepared as array_record and have the features image and label. The test split is the split named
  test or else the split named validation: ImageNet's test labels, for example, are not public. Under
  `tfds.testing.mock_data` nothing needs to be prepared.
  """
  where = f"data.source: 'tfds:{argument}'"
  if _is_mocked():
    import tensorflow_datasets

    return read_builder(tensorflow_datasets.builder(argument), where)
  return read_builder(_open_builder(_find_prepared(argument, folder, where), where), where)


class TfdsRecords(NamedTuple):
  """Encoded images of a split as a `RecordSource`."""

  source: Any  # TFDS's data source, without decoding
  split: str

  def read(self, index: int) -> bytes:
    """Bytes of one encoded image.

    Raises:
      ValueError: the record cannot be read.
    """
    try:
      return self.source[index]["image"]
    except Exception as error:  # TFDS passes on any exception of its parsers
      raise ValueError(f"cannot read {self.name(index)} ({_first_line(error)}); prepare it again") from None

  def name(self, index: int) -> str:
    """Position of one example, for messages."""
    return f"example {index} of split {self.split}"


def stream_tfds(argument: str, folder: str, crop: CropConfig) -> RawSplits:
  """The examples of `read_tfds`, of any sizes, decoded on access.

  The fingerprint covers TFDS's description and the names and sizes of the files. Labels lie in the records too: the
  first call reads all records and caches the labels in the user's cache folder.
  """
  where = f"data.source: 'tfds:{argument}'"
  path = _find_prepared(argument, folder, where)
  builder = _open_builder(path, where)
  _check_features(builder, where)
  from tensorflow_datasets import decode

  files = sorted((file.name, file.stat().st_size) for file in path.iterdir())
  digest = hashlib.sha256(repr((files, (path / "dataset_info.json").read_text())).encode()).hexdigest()

  def split(name: str) -> Split:
    source = _open_source(builder, name, where, decoders={"image": decode.SkipDecoding()})
    label = _read_labels(source, name, digest, where)
    return Split(
      LazyImages(TfdsRecords(source, name), np.arange(len(label)), crop, f"{digest} {name}"), label
    )

  return RawSplits(split("train"), split(_test_split(builder, where)), _class_names(builder), IMAGENET_STATS)


def _read_labels(source: Any, split: str, digest: str, where: str) -> np.ndarray:
  """Labels [n], int32, from the cache folder or else from every example."""
  cache = (
    pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "smskd_jax" / "labels"
  )
  file = cache / f"{digest[:32]}-{split}.npy"
  with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged: read again
    return np.load(file, allow_pickle=False)
  label = np.array([example["label"] for example in _iterate_in_batches(source, split, where)], np.int32)
  with contextlib.suppress(OSError):  # without a cache folder, labels are read again the next time
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as temporary:
      np.save(temporary, label)
    os.replace(temporary.name, file)  # atomic: several processes may write the file
  return label


def _is_mocked() -> bool:
  """True under `tfds.testing.mock_data`, which yields random examples for every data set."""
  if sys.modules.get("tensorflow_datasets") is None:
    return False
  import tensorflow_datasets

  return tensorflow_datasets.core.DatasetBuilder.download_and_prepare.__module__.endswith("testing.mocking")


def _find_prepared(argument: str, folder: str, where: str) -> pathlib.Path:
  """Folder of the newest prepared version that matches."""
  if importlib.util.find_spec("tensorflow_datasets") is None:
    raise UserError(f"{where} needs TensorFlow Datasets; pip install tensorflow-datasets")
  root = pathlib.Path(folder or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
  match = re.fullmatch(r"(\w+(?:/[^:/]+)?)(?::(\d+\.\d+\.\d+))?", argument)
  if not match:
    raise UserError(
      f"{where} is not a name of TFDS; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION"
    )
  name, version = match.groups()
  versions = [path.parent for path in (root / name).glob("*.*.*/dataset_info.json")]
  matching = [path for path in versions if version in (None, path.name)]
  if matching:
    return max(matching, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
  prepared = sorted({path.parents[1].relative_to(root).as_posix() for path in _list_prepared(root)})
  nearest = difflib.get_close_matches(argument, prepared, n=1)
  hint = f"did you mean {nearest[0]!r}? " if nearest else ""
  raise UserError(
    f"{where} is not prepared in {root} (there: {', '.join(prepared) or 'nothing'}); {hint}data.folder names "
    f"another data_dir, tfds.builder({argument!r}, data_dir={str(root)!r}, file_format='array_record')"
    ".download_and_prepare() prepares it"
  )


def _list_prepared(root: pathlib.Path) -> list[pathlib.Path]:
  """The dataset_info.json of every prepared data set, with and without configs."""
  # No deeper: a data_dir may also hold millions of extracted files.
  return [path for depth in ("*", "*/*") for path in root.glob(f"{depth}/*.*.*/dataset_info.json")]


def _open_builder(path: pathlib.Path, where: str) -> Any:
  """TFDS's builder for a prepared folder."""
  fix = "prepare it again, with file_format='array_record', in another data_dir"
  try:
    file_format = json.loads((path / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if file_format != "array_record":  # other formats need TensorFlow, or lack random access
      raise UserError(f"{where}: {path} is stored as {file_format}; {fix}")
    import tensorflow_datasets

    return tensorflow_datasets.builder_from_directory(path)
  except UserError:
    raise
  except Exception as error:  # TFDS passes on any exception of its parsers
    raise UserError(f"{where}: cannot read {path} ({_first_line(error)}); {fix}") from None


def read_builder(builder: Any, where: str) -> RawSplits:
  """Reads train and test from a TFDS builder whose data are prepared or mocked."""
  _check_features(builder, where)
  train, test = (_read_split(builder, name, where) for name in ("train", _test_split(builder, where)))
  return RawSplits(train, test, _class_names(builder))


def _check_features(builder: Any, where: str) -> None:
  features = builder.info.features
  lacking = [key for key in ("image", "label") if key not in features]
  if lacking:
    raise UserError(
      f"{where} has no feature {lacking[0]!r} (but {', '.join(features)}); take a set for image classification"
    )


def _class_names(builder: Any) -> tuple[str, ...]:
  return tuple(getattr(builder.info.features["label"], "names", None) or ())


def _test_split(builder: Any, where: str) -> str:
  names = list(builder.info.splits) or ["train", "test"]  # mock_data lists no splits and accepts any
  if "train" in names and "test" in names:
    return "test"
  if "train" in names and "validation" in names:
    return "validation"
  raise UserError(f"{where} has the splits {', '.join(names)}; it must have train, and test or validation")


def _read_split(builder: Any, name: str, where: str) -> Split:
  images: list[np.ndarray] = []
  labels: list[int] = []
  for example in _iterate_in_batches(_open_source(builder, name, where), name, where):
    images.append(example["image"])
    labels.append(example["label"])
    if images[-1].shape != images[0].shape:  # before all of ImageNet has been read
      sizes = f"{images[0].shape} but also {images[-1].shape}"
      raise UserError(
        f"{where}: images of split {name} are {sizes}; take a set of one size, or set data.streamed"
      )
  return Split(np.array(images), np.array(labels))


def _open_source(builder: Any, name: str, where: str, **options: Any) -> Any:
  """TFDS's data source of a split."""
  try:
    return builder.as_data_source(split=name, **options)
  except Exception as error:  # TFDS passes on any exception of its readers
    raise _read_error(error, name, where) from None


def _iterate_in_batches(source: Any, name: str, where: str) -> Iterator[dict[str, Any]]:
  """All examples, decoded in batches, which is several times faster than one by one."""
  try:
    if _is_mocked():  # mocked sources cannot read in bulk
      yield from (source[i] for i in range(len(source)))
      return
    for first in range(0, len(source), READ_BATCH):
      yield from source.__getitems__(list(range(first, min(first + READ_BATCH, len(source)))))
  except Exception as error:  # TFDS passes on any exception of its decoders
    raise _read_error(error, name, where) from None


def _read_error(error: Exception, name: str, where: str) -> UserError:
  return UserError(f"{where}: cannot read split {name} ({_first_line(error)}); prepare it again")


def _first_line(error: Exception) -> str:
  """First line of an error's message, or the error's type."""
  return str(error).strip().split("\n")[0] or type(error).__name__
