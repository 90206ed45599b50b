"""A table on disk that fills as it is asked: what was said of so many views of so many images, some of it there yet."""

from collections.abc import Sequence
import os
from pathlib import Path

import numpy as np

from smskd_jax.runtime import processes

PRESENT = "present.npy"


class Table:
  """Arrays [m, v, ...] by name, of m images and v views, and which of their entries are there.

  One run writes at a time, the lead of its processes; any number may read what was there when they came.
  """

  def __init__(self, folder: Path, shape: tuple[int, int]):
    """Takes its folder, which need not be there, and (m, v)."""
    self.folder, self._files = folder, dict[str, np.memmap]()
    there = (folder / PRESENT).is_file()
    self.present: np.ndarray = np.load(folder / PRESENT) if there else np.zeros(shape, bool)

  def put(self, images: np.ndarray, views: np.ndarray, said: dict[str, np.ndarray]) -> None:
    """Writes entries [b, ...] of the places `images` [b] and `views` [b], always of the same names."""
    for name, x in said.items() if processes.is_lead() else ():
      self._open(name, x)[images, views] = x
    self.present[images, views] = True

  def save(self) -> None:
    """Marks what was written as there, once it is on the disk."""
    if not processes.is_lead():
      return
    for file in self._files.values():
      file.flush()
    temporary = self.folder / f".{os.getpid()}.{PRESENT}"
    np.save(temporary, self.present)
    temporary.replace(self.folder / PRESENT)

  def read(self, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays, as files in memory; zero where an entry is not there."""
    return [np.load(self._path(name), mmap_mode="r") for name in names]

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
