"""Arrays of training steps, computed ahead by threads or processes with Grain."""

import atexit
from collections.abc import Callable, Iterator
import functools
import multiprocessing
import os
import signal
import threading

from absl import flags
import numpy as np

from smskd_jax.errors import UserError


def prefetch(
  make_batch: Callable[[int], np.ndarray], start: int, stop: int, *, num_workers: int = 0
) -> Iterator[np.ndarray]:
  """Yields make_batch(step) for the steps start, ..., stop - 1, in order.

  Each array depends on its step alone, and so not on the number of workers or on the first step.

  Args:
    make_batch: pure. Worker processes get a pickled copy, which must not need devices.
    start: first step.
    stop: one past the last step.
    num_workers: processes; 0 for one thread per core. Threads suffice for decoding, during which Pillow releases the
      interpreter lock.

  Raises:
    UserError: raised by the function.
  """
  import grain  # here: runs that do not stream need not load Grain

  if start >= stop:
    return
  threads = 1 if num_workers else len(os.sched_getaffinity(0))
  steps = grain.MapDataset.range(start, stop).map(functools.partial(_return_user_error, make_batch))
  batches = steps.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
  )
  if num_workers:
    if not flags.FLAGS.is_parsed():  # as in a notebook: Grain's processes read flags of Grain
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    batches = batches.mp_prefetch(options, worker_init_fn=_init_worker)
  iterator = iter(batches)
  atexit.register(iterator.close)  # before the interpreter shuts down, which would be too late for Grain
  try:
    yield from map(_raise_or_copy, iterator)
  finally:
    atexit.unregister(iterator.close)
    iterator.close()


def _init_worker(worker: int, count: int) -> None:
  """Makes a worker process ignore Ctrl-C, which its parent handles, and exit with its parent."""
  del worker, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _return_user_error(make_batch: Callable[[int], np.ndarray], step: int) -> np.ndarray | UserError:
  """Returns a UserError as a value, because Grain adds lines to errors that are raised."""
  try:
    return make_batch(step)
  except UserError as error:
    return error


def _raise_or_copy(result: np.ndarray | UserError) -> np.ndarray:
  """Copies the array, because arrays of worker processes lie in scarce shared memory."""
  if isinstance(result, UserError):
    raise result
  return np.array(result)
