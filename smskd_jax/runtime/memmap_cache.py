"""A table on disk that fills as it is asked: what was said of so many views of so many images, some of it there yet.

The list of digests of a finished stage leaves these tables out, because they grow after it. Each has checksums of its
own, one for the present entries of each image: `save` computes them for the images that were written to, and `verify`
compares them once a process. What does not match counts as absent, and is computed again.
"""

from collections.abc import Iterable, Sequence
import os
from pathlib import Path
import zlib

import numpy as np

from smskd_jax.runtime import distributed
from smskd_jax.runtime.integrity import DamagedFileError, read_arrays

PRESENT = "present.npz"

# By folder: the time of the last change and the size of each file of a table that was found whole in this process.
_VERIFIED: dict[Path, list[tuple[str, int, int]]] = {}


class MemmapCache:
  """Arrays [m, v, ...] by name, of m images and v views, and which of their entries are there.

  One run writes at a time, the lead of its processes; any number may read what was there when they came.
  """

  def __init__(self, folder: Path, shape: tuple[int, int]):
    """Takes its folder, which need not be there, and (m, v)."""
    self.folder, self._files = folder, dict[str, np.memmap]()
    self.present: np.ndarray = np.zeros(shape, bool)
    self._checksums: np.ndarray = np.zeros(shape[0], np.uint32)
    self._written: set[int] = set()  # images whose checksums are to be computed
    self.damage = ""  # a line on entries that were damaged, and so count as absent
    if (folder / PRESENT).is_file():
      self._read_present()

  def _read_present(self) -> None:
    path = self.folder / PRESENT
    try:
      found = read_arrays(path)
      if found["present"].shape != self.present.shape or found["checksum"].shape != self._checksums.shape:
        raise DamagedFileError(path, "is damaged (it is of other images or views)")
      self.present, self._checksums = found["present"], found["checksum"]
    except (DamagedFileError, KeyError) as error:
      problem = error if isinstance(error, DamagedFileError) else f"{path} is damaged"
      self.damage = f"{problem}; all of it is computed again"

  def verify(self) -> None:
    """Compares all present entries with their checksums. Damaged ones count as absent, and `damage` tells of them."""
    if not self.present.any() or _VERIFIED.get(self.folder.absolute()) == self._marks():
      return
    before = int(self.present.sum())
    try:
      arrays = [np.load(path, mmap_mode="r") for path in self._paths()]
      if not arrays or any(x.shape[:2] != self.present.shape for x in arrays):
        raise ValueError("arrays of other images or views")
      wrong = self._compute_checksums(range(len(self.present)), arrays) != self._checksums
      self.present[wrong] = False
    except (OSError, ValueError, EOFError):
      self.present[:] = False
    if self.present.sum() < before:
      count = before - int(self.present.sum())
      self.damage = (
        f"{self.folder}: {count:,} of {before:,} cached outputs are damaged; these are computed again"
      )
    else:
      _VERIFIED[self.folder.absolute()] = self._marks()

  def write(self, images: np.ndarray, views: np.ndarray, said: dict[str, np.ndarray]) -> None:
    """Writes entries [b, ...] of the places `images` [b] and `views` [b], always of the same names."""
    for name, x in said.items() if distributed.is_primary() else ():
      self._open(name, x)[images, views] = x
    self.present[images, views] = True
    self._written |= set(images.tolist())

  def save(self) -> None:
    """Marks what was written as there, once it is on the disk."""
    if not distributed.is_primary():
      return
    for file in self._files.values():
      file.flush()
    rows = sorted(self._written)
    self._checksums[rows] = self._compute_checksums(rows, [self._files[name] for name in sorted(self._files)])
    self._written.clear()
    temporary = self.folder / f".{os.getpid()}.{PRESENT}"
    with open(temporary, "wb") as marks:
      np.savez(marks, present=self.present, checksum=self._checksums)
    temporary.replace(self.folder / PRESENT)

  def read(self, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays, as files in memory; zero where an entry is not there."""
    return [np.load(self._path(name), mmap_mode="r") for name in names]

  def _compute_checksums(self, images: Iterable[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of the present entries of some images, CRC-32 over all arrays in the order of their names."""
    found = []
    for i in images:
      crc = 0
      for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array[i][self.present[i]]).tobytes(), crc)
      found.append(crc)
    return np.array(found, np.uint32)

  def _paths(self) -> list[Path]:
    return sorted(self.folder.glob("*.npy"))

  def _marks(self) -> list[tuple[str, int, int]]:
    stats = [(path.name, path.stat()) for path in (*self._paths(), self.folder / PRESENT)]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]

  def _open(self, name: str, said: np.ndarray) -> np.memmap:
    if name not in self._files:
      # What an interrupted process has written and not marked is written again.
      if self._path(name).is_file() and self.present.any():
        self._files[name] = np.load(self._path(name), mmap_mode="r+")
      else:
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (*self.present.shape, *said.shape[1:])
        self._files[name] = np.lib.format.open_memmap(self._path(name), "w+", said.dtype, shape)
    return self._files[name]

  def _path(self, name: str) -> Path:
    return self.folder / f"{name}.npy"
