"""Tests of exchange/torch_reader.py: tensors come out as they went in, and nothing else is ever run."""

import argparse
import os
import pickle
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from smskd_jax.errors import UserError
from smskd_jax.exchange import torch_reader
import torch_files


def arrays():
  rng = np.random.default_rng(0)
  return {
    "single": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "double": rng.normal(size=(3, 2)),
    "half": rng.normal(size=5).astype(np.float16),
    "brain": rng.normal(size=5).astype(ml_dtypes.bfloat16),
    "count": np.array(7, np.int64),
    "nothing": np.zeros((0, 3), np.float32),
  }


def test_reads_what_was_written(tmp_path):
  path = tmp_path / "model.pth"
  torch_files.write(path, {"model": arrays(), "epoch": 240, "best": 73.5, "names": ["a", None, True]})
  content = torch_reader.read(path)
  assert content["epoch"] == 240 and content["best"] == 73.5 and content["names"] == ["a", None, True]
  for name, x in arrays().items():
    assert content["model"][name].dtype == x.dtype
    np.testing.assert_array_equal(content["model"][name], x)
  assert torch_reader.state_dict(content, path).keys() == arrays().keys()


def test_strides_and_offsets(tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  torch_files.write(tmp_path / "t", {"w": x}, tensor=lambda x: (1, (4, 2), (1, 4)))
  np.testing.assert_array_equal(torch_reader.read(tmp_path / "t")["w"], x.ravel()[1:9].reshape(2, 4).T)


@pytest.mark.parametrize(
  "described",
  [
    (0, (100,), (1,)),
    (10, (3,), (1,)),
    (0, (3, 4), (4, 2)),
    (0, (1000, 1000), (0, 0)),
    (-1, (3,), (1,)),
    (0, (3,), (-1,)),
    (0, (3, 4), (4,)),
    (0, (3.0,), (1,)),
  ],
)
def test_never_reads_beyond_the_data(described, tmp_path):
  x = np.zeros((3, 4), np.float32)
  torch_files.write(tmp_path / "t", {"w": x}, tensor=lambda _: described)
  with pytest.raises(UserError, match="refused: a tensor"):
    torch_reader.read(tmp_path / "t")


class Evil:
  def __init__(self, function, *args):
    self._reduced = function, args

  def __reduce__(self):
    return self._reduced


@pytest.mark.parametrize(
  "evil, name",
  [
    (lambda mark: Evil(os.system, f"touch {mark}"), r"\w+\.system"),
    (lambda mark: Evil(eval, f"open({str(mark)!r}, 'w')"), r"builtins\.eval"),
    (lambda mark: Evil(getattr, os, "system"), r"builtins\.getattr"),
    (lambda mark: Evil(subprocess.Popen, ["touch", str(mark)]), r"\w+\.Popen"),
  ],
)
def test_executes_nothing(evil, name, tmp_path):
  path, mark = tmp_path / "model.pth", tmp_path / "executed"
  try:
    program = pickle.dumps({"model": evil(mark)}, protocol=2)
  except TypeError:  # modules cannot be pickled; what would look one up can
    program = b"c__builtin__\ngetattr\n."
  torch_files.write_archive(path, program, {})
  with pytest.raises(
    UserError, match=rf"refused: it asks for (__builtin__\.|{name}).*nothing was executed"
  ) as error:
    torch_reader.read(path)
  assert not mark.exists() and "\n" not in str(error.value)


def test_options_of_training_scripts_are_passed_over(tmp_path):
  path = tmp_path / "last.pth"
  torch_files.write(path, {"opt": argparse.Namespace(lr=0.1), "model": {"w": np.ones(2, np.float32)}})
  np.testing.assert_array_equal(torch_reader.state_dict(torch_reader.read(path), path)["w"], 1)


@pytest.mark.parametrize("keep", [10, 100, 0.5, -20])
def test_truncated(keep, tmp_path):
  path = tmp_path / "model.pth"
  torch_files.write(path, arrays())
  content = path.read_bytes()
  path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
  with pytest.raises(UserError, match=str(path)) as error:
    torch_reader.read(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04 nonsense"])
def test_not_a_checkpoint(content, tmp_path):
  path = tmp_path / "model.pth"
  path.write_bytes(content)
  with pytest.raises(UserError, match=str(path)):
    torch_reader.state_dict(torch_reader.read(path), path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, {"model": {"w": 3}}, [1, 2]])
def test_without_weights(content, tmp_path):
  path = tmp_path / "model.pth"
  torch_files.write(path, content)
  with pytest.raises(UserError, match="holds no state_dict"):
    torch_reader.state_dict(torch_reader.read(path), path)


def test_a_file_of_pytorch_is_read_where_pytorch_is_not(tmp_path):
  torch = pytest.importorskip("torch")
  layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  layer.half_copy = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
  path = tmp_path / "model.pth"
  torch.save({"model": layer.state_dict(), "best_acc": torch.tensor(73.5)}, path)
  np.savez(tmp_path / "expected.npz", **{k: v.float().numpy() for k, v in layer.state_dict().items()})
  code = f"""
    import sys
    sys.modules["torch"] = None
    import numpy as np, pathlib
    from smskd_jax.exchange import torch_reader
    path = pathlib.Path({str(path)!r})
    found = torch_reader.state_dict(torch_reader.read(path), path)
    expected = np.load({str(tmp_path / "expected.npz")!r})
    assert set(found) == set(expected)
    for name in expected:
      np.testing.assert_array_equal(np.asarray(found[name], np.float32), expected[name])
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=os.environ)


def test_files_of_the_older_kind_are_read_by_pytorch(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "model.tar"
  content = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
  torch.save(content, path, _use_new_zipfile_serialization=False)
  found = torch_reader.state_dict(torch_reader.read(path), path)
  np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3))


def test_files_of_the_older_kind_need_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "model.tar"
  path.write_bytes(b"\x80\x02" + bytes(20))
  with pytest.raises(UserError, match="older file format or truncated; install torch"):
    torch_reader.read(path)
