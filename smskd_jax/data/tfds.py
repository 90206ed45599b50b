"""Data sets that TensorFlow Datasets (TFDS) has prepared, read without TensorFlow and without the network.

Only files are read. A builder made from code would ask Google's bucket about a data set it does not find, and
preparing one would download it: a machine without internet waits for minutes.
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

READ_BATCH = 1024  # examples decoded in one call


def read_tfds(argument: str, folder: str) -> RawSplits:
  """The data set NAME, NAME/CONFIG or NAME/CONFIG:VERSION in the data_dir `folder`, by default TFDS's own.

  It must be prepared as array_record and have the features image and label. The split to test on is the one
  named test or, where there is none, the one named validation: ImageNet's test labels, for one, are secret.
  Under `tfds.testing.mock_data` nothing needs to be prepared.
  """
  where = f"data.source: 'tfds:{argument}'"
  if _is_mocked():
    import tensorflow_datasets

    return read_builder(tensorflow_datasets.builder(argument), where)
  return read_builder(_open_builder(_find_prepared(argument, folder, where), where), where)


class TfdsRecords(NamedTuple):
  """A split's encoded images, as records."""

  source: Any  # TFDS's, which does not decode
  split: str

  def read(self, i: int) -> bytes:
    """The i-th.

    Raises:
      ValueError: it cannot be read.
    """
    try:
      return self.source[i]["image"]
    except Exception as error:  # TFDS lets through whatever its parsers raise
      raise ValueError(f"cannot read {self.name(i)} ({_first_line(error)}); prepare it again") from None

  def name(self, i: int) -> str:
    """Where the i-th is."""
    return f"example {i} of split {self.split}"


def stream_tfds(argument: str, folder: str, crop: CropConfig) -> RawSplits:
  """The same examples, of any sizes, in their records until they are asked for.

  Their fingerprint is of TFDS's description and of the names and sizes of the files. Labels are in the records too: the
  first time all of them are read for it, and the labels are kept in the user's cache folder.
  """
  where = f"data.source: 'tfds:{argument}'"
  path = _find_prepared(argument, folder, where)
  builder = _open_builder(path, where)
  _check_features(builder, where)
  from tensorflow_datasets import decode

  listed = sorted((file.name, file.stat().st_size) for file in path.iterdir())
  digest = hashlib.sha256(repr((listed, (path / "dataset_info.json").read_text())).encode()).hexdigest()

  def split(name: str) -> Split:
    source = _open_source(builder, name, where, decoders={"image": decode.SkipDecoding()})
    label = _read_labels(source, name, digest, where)
    return Split(
      LazyImages(TfdsRecords(source, name), np.arange(len(label)), crop, f"{digest} {name}"), label
    )

  return RawSplits(split("train"), split(_test_split(builder, where)), _class_names(builder), IMAGENET_STATS)


def _read_labels(source: Any, split: str, digest: str, where: str) -> np.ndarray:
  """[n], int32: from the cache folder, or read of every example."""
  cache = (
    pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "smskd_jax" / "labels"
  )
  file = cache / f"{digest[:32]}-{split}.npy"
  with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged: then it is made again
    return np.load(file, allow_pickle=False)
  label = np.array([example["label"] for example in _iterate_in_batches(source, split, where)], np.int32)
  with contextlib.suppress(OSError):  # without a cache, they are read again the next time
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as written:
      np.save(written, label)
    os.replace(written.name, file)  # at once: several processes may be at it
  return label


def _is_mocked() -> bool:
  """Whether `tfds.testing.mock_data` is in force, which answers for every data set with random examples."""
  if sys.modules.get("tensorflow_datasets") is None:
    return False
  import tensorflow_datasets

  return tensorflow_datasets.core.DatasetBuilder.download_and_prepare.__module__.endswith("testing.mocking")


def _find_prepared(argument: str, folder: str, where: str) -> pathlib.Path:
  """The folder that holds the newest version asked for."""
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
  chosen = [path for path in versions if version in (None, path.name)]
  if chosen:
    return max(chosen, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
  found = sorted({path.parents[1].relative_to(root).as_posix() for path in _list_prepared(root)})
  nearest = difflib.get_close_matches(argument, found, n=1)
  hint = f"did you mean {nearest[0]!r}? " if nearest else ""
  raise UserError(
    f"{where} is not prepared in {root} (there: {', '.join(found) or 'nothing'}); {hint}data.folder names "
    f"another data_dir, tfds.builder({argument!r}, data_dir={str(root)!r}, file_format='array_record')"
    ".download_and_prepare() prepares it"
  )


def _list_prepared(root: pathlib.Path) -> list[pathlib.Path]:
  """The dataset_info.json of all that is prepared, with and without configs."""
  # No deeper: a data_dir may also hold the millions of files that were once extracted there.
  return [path for depth in ("*", "*/*") for path in root.glob(f"{depth}/*.*.*/dataset_info.json")]


def _open_builder(path: pathlib.Path, where: str) -> Any:
  """TFDS's reader of a prepared folder."""
  fix = "prepare it again, with file_format='array_record', in another data_dir"
  try:
    file_format = json.loads((path / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if file_format != "array_record":  # the others need TensorFlow, or do not give random access
      raise UserError(f"{where}: {path} is stored as {file_format}; {fix}")
    import tensorflow_datasets

    return tensorflow_datasets.builder_from_directory(path)
  except UserError:
    raise
  except Exception as error:  # TFDS lets through whatever its parsers raise
    raise UserError(f"{where}: cannot read {path} ({_first_line(error)}); {fix}") from None


def read_builder(builder: Any, where: str) -> RawSplits:
  """Reads the two splits of a TFDS builder whose data are prepared, or mocked."""
  _check_features(builder, where)
  train, test = (_read_split(builder, name, where) for name in ("train", _test_split(builder, where)))
  return RawSplits(train, test, _class_names(builder))


def _check_features(builder: Any, where: str) -> None:
  features = builder.info.features
  lacking = [key for key in ("image", "label") if key not in features]
  if lacking:
    found = ", ".join(features)
    raise UserError(
      f"{where} has no feature {lacking[0]!r} (but {found}); take a set for image classification"
    )


def _class_names(builder: Any) -> tuple[str, ...]:
  return tuple(getattr(builder.info.features["label"], "names", None) or ())


def _test_split(builder: Any, where: str) -> str:
  names = list(builder.info.splits) or ["train", "test"]  # mock_data knows of none and answers for all
  if "train" in names and "test" in names:
    return "test"
  if "train" in names and "validation" in names:
    return "validation"
  raise UserError(f"{where} has the splits {', '.join(names)}; it must have train, and test or validation")


def _read_split(builder: Any, name: str, where: str) -> Split:
  images: list[np.ndarray] = []
  labels: list[int] = []
  for example in _iterate_examples(builder, name, where):
    images.append(example["image"])
    labels.append(example["label"])
    if images[-1].shape != images[0].shape:  # said at once: not after all of ImageNet has been read
      sizes = f"{images[0].shape} but also {images[-1].shape}"
      raise UserError(
        f"{where}: images of split {name} are {sizes}; take a set of one size, or set data.streamed"
      )
  return Split(np.array(images), np.array(labels))


def _iterate_examples(builder: Any, name: str, where: str) -> Iterator[dict[str, Any]]:
  """All examples of a split."""
  yield from _iterate_in_batches(_open_source(builder, name, where), name, where)


def _open_source(builder: Any, name: str, where: str, **options: Any) -> Any:
  """TFDS's reader of a split."""
  try:
    return builder.as_data_source(split=name, **options)
  except Exception as error:  # TFDS lets through whatever its readers raise
    raise _read_error(error, name, where) from None


def _iterate_in_batches(source: Any, name: str, where: str) -> Iterator[dict[str, Any]]:
  """All examples, read many at a time, which is several times faster than one by one."""
  try:
    if _is_mocked():  # mocked sources cannot read in bulk
      yield from (source[i] for i in range(len(source)))
      return
    for first in range(0, len(source), READ_BATCH):
      yield from source.__getitems__(list(range(first, min(first + READ_BATCH, len(source)))))
  except Exception as error:  # TFDS lets through whatever its decoders raise
    raise _read_error(error, name, where) from None


def _read_error(error: Exception, name: str, where: str) -> UserError:
  return UserError(f"{where}: cannot read split {name} ({_first_line(error)}); prepare it again")


def _first_line(error: Exception) -> str:
  """The first line of what a library says."""
  return str(error).strip().split("\n")[0] or type(error).__name__
