"""What steps need, made before they ask for it, in threads or processes: the only place that knows Grain."""

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
  """The arrays that a function makes of the steps first, ..., end - 1, in their order.

  Whatever is made depends on its step alone, and so not on who makes it, how many there are, or where they begin.

  Args:
    of_step: pure. Processes of their own get a copy of it, pickled, and must not need devices for it.
    first: step.
    end: the step behind the last.
    workers: processes that call it; 0: as many threads as there are cores. Threads do where the time goes into
      decoding, during which Pillow lets go of the interpreter.

  Raises:
    UserError: what the function has raised.
  """
  import grain  # here: who streams nothing need not wait for it

  if start >= stop:
    return
  threads = 1 if num_workers else len(os.sched_getaffinity(0))
  steps = grain.MapDataset.range(start, stop).map(functools.partial(_return_user_error, make_batch))
  made = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads)))
  if num_workers:
    if not flags.FLAGS.is_parsed():  # as in a notebook: Grain's processes ask for flags of its own
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    made = made.mp_prefetch(options, worker_init_fn=_init_worker)
  iterator = iter(made)
  atexit.register(iterator.close)  # before the interpreter is taken apart, which would be too late for it
  try:
    yield from map(_raise_or_copy, iterator)
  finally:
    atexit.unregister(iterator.close)
    iterator.close()


def _init_worker(worker: int, count: int) -> None:
  """In a process of Grain's: leaves Ctrl-C to its parent, and ends with it, however it ends."""
  del worker, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _return_user_error(make_batch: Callable[[int], np.ndarray], step: int) -> np.ndarray | UserError:
  """A user's mistake as a value: to what is raised Grain adds lines of its own."""
  try:
    return make_batch(step)
  except UserError as error:
    return error


def _raise_or_copy(result: np.ndarray | UserError) -> np.ndarray:
  """A copy: arrays of other processes lie in memory that is shared and scarce."""
  if isinstance(result, UserError):
    raise result
  return np.array(result)
