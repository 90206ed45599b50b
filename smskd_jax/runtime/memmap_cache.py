"""Memory-mapped cache of network outputs per (image, view), filled incrementally.

The cache grows after its stage has finished, so that the stage's list of digests leaves the cache out. Instead, each
image has a checksum of its present entries: `save` computes the checksums of written images, and `verify` compares them
once a process. Entries with another checksum count as absent, and are computed again.
"""

from collections.abc import Iterable, Sequence
import os
from pathlib import Path
import zlib

import numpy as np

from smskd_jax.runtime import distributed
from smskd_jax.runtime.integrity import DamagedFileError, read_arrays

PRESENT = "present.npz"

# By folder: modification time and size of each file of a cache that this process has verified.
_VERIFIED: dict[Path, list[tuple[str, int, int]]] = {}


class MemmapCache:
  """Arrays [m, v, ...] by name, for m images and v views, with a mask of present entries.

  One run writes at a time, by process 0. Any number of processes may read the entries that were present at opening.
  """

  def __init__(self, folder: Path, shape: tuple[int, int]):
    """Opens the cache in a folder, which need not exist, of shape (m, v)."""
    self.folder, self._files = folder, dict[str, np.memmap]()
    self.present: np.ndarray = np.zeros(shape, bool)
    self._checksums: np.ndarray = np.zeros(shape[0], np.uint32)
    self._written: set[int] = set()  # images with outdated checksums
    self.damage = ""  # a message about damaged entries, which count as absent
    if (folder / PRESENT).is_file():
      self._read_present()

  def _read_present(self) -> None:
    path = self.folder / PRESENT
    try:
      found = read_arrays(path)
      if found["present"].shape != self.present.shape or found["checksum"].shape != self._checksums.shape:
        raise DamagedFileError(path, "is damaged (its shape is of other images or views)")
      self.present, self._checksums = found["present"], found["checksum"]
    except (DamagedFileError, KeyError) as error:
      problem = error if isinstance(error, DamagedFileError) else f"{path} is damaged"
      self.damage = f"{problem}; all of it is computed again"

  def verify(self) -> None:
    """Compares all present entries with their checksums.

    Damaged entries become absent and are named in `damage`.
    """
    if not self.present.any() or _VERIFIED.get(self.folder.absolute()) == self._file_stamps():
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
      _VERIFIED[self.folder.absolute()] = self._file_stamps()

  def write(self, images: np.ndarray, views: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
    """Writes outputs [b, ...] by name at `images` [b] and `views` [b]; the names never change."""
    for name, x in outputs.items() if distributed.is_primary() else ():
      self._open(name, x)[images, views] = x
    self.present[images, views] = True
    self._written |= set(images.tolist())

  def save(self) -> None:
    """Marks written entries as present, after flushing them to the disk."""
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
    """The memory-mapped arrays; absent entries are zero."""
    return [np.load(self._path(name), mmap_mode="r") for name in names]

  def _compute_checksums(self, images: Iterable[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """CRC-32 of the present entries of some images."""
    checksums = []
    for i in images:
      crc = 0
      for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array[i][self.present[i]]).tobytes(), crc)
      checksums.append(crc)
    return np.array(checksums, np.uint32)

  def _paths(self) -> list[Path]:
    return sorted(self.folder.glob("*.npy"))

  def _file_stamps(self) -> list[tuple[str, int, int]]:
    stats = [(path.name, path.stat()) for path in (*self._paths(), self.folder / PRESENT)]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]

  def _open(self, name: str, values: np.ndarray) -> np.memmap:
    if name not in self._files:
      # Entries that an interrupted process wrote without marking them are written again.
      if self._path(name).is_file() and self.present.any():
        self._files[name] = np.load(self._path(name), mmap_mode="r+")
      else:
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (*self.present.shape, *values.shape[1:])
        self._files[name] = np.lib.format.open_memmap(self._path(name), "w+", values.dtype, shape)
    return self._files[name]

  def _path(self, name: str) -> Path:
    return self.folder / f"{name}.npy"
