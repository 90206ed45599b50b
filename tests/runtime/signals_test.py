"""Tests of runtime/signals.py."""

import os
import signal
import threading

import pytest

from smskd_jax.runtime import signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_handlers_are_put_back(signum):
  before = signal.getsignal(signum)
  with signals.handle_signals() as stop:
    assert not stop
    os.kill(os.getpid(), signum)
    assert stop and stop.signum == signum
  assert signal.getsignal(signum) is before


def test_the_second_ctrl_c_does_not_wait():
  with pytest.raises(KeyboardInterrupt), signals.handle_signals():
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_does_not_wait_where_nothing_is_unsaved():
  with pytest.raises(KeyboardInterrupt), signals.handle_signals(unsaved=False):
    os.kill(os.getpid(), signal.SIGINT)


def test_what_was_noted_is_raised_once_nothing_is_unsaved():
  with signals.handle_signals(unsaved=False) as stop:
    stop.set_unsaved(True)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.set_unsaved(True)
    with pytest.raises(signals.Interrupted) as raised:
      stop.set_unsaved(False)
  assert raised.value.signum == signal.SIGTERM


def test_outside_the_main_thread_nothing_is_watched():
  seen = []

  def watch():
    with signals.handle_signals() as stop:
      seen.append(bool(stop))

  thread = threading.Thread(target=watch)
  thread.start()
  thread.join()
  assert seen == [False]
