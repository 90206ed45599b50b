"""Tests of exchange/torch_reader.py: tensors are read exactly, and no code of a file is executed."""

import argparse
import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile

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


WRITERS = [torch_files.write, torch_files.write_legacy]


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_and_values_are_read_exactly(write, tmp_path):
  path = tmp_path / "model.pth"
  write(path, {"model": arrays(), "epoch": 240, "best": 73.5, "names": ["a", None, True]})
  content = torch_reader.read(path)
  assert content["epoch"] == 240 and content["best"] == 73.5 and content["names"] == ["a", None, True]
  for name, x in arrays().items():
    assert content["model"][name].dtype == x.dtype
    np.testing.assert_array_equal(content["model"][name], x)
  assert torch_reader.find_state_dict(content, path).keys() == arrays().keys()


@pytest.mark.parametrize("write", WRITERS)
def test_strides_and_offsets(write, tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  write(tmp_path / "t", {"w": x}, tensor=lambda x: (1, (4, 2), (1, 4)))
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
@pytest.mark.parametrize("write", WRITERS)
def test_never_reads_beyond_the_data(write, described, tmp_path):
  x = np.zeros((3, 4), np.float32)
  write(tmp_path / "t", {"w": x}, tensor=lambda _: described)
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
@pytest.mark.parametrize("write", [torch_files.write_archive, torch_files.write_legacy_file])
def test_executes_nothing(write, evil, name, tmp_path):
  path, mark = tmp_path / "model.pth", tmp_path / "executed"
  try:
    program = pickle.dumps({"model": evil(mark)}, protocol=2)
  except TypeError:  # modules cannot be pickled; what would look one up can
    program = b"c__builtin__\ngetattr\n."
  write(path, program, {})
  with pytest.raises(
    UserError, match=rf"refused: it asks for (__builtin__\.|{name}).*nothing was executed"
  ) as error:
    torch_reader.read(path)
  assert not mark.exists() and "\n" not in str(error.value)


def test_options_of_training_scripts_are_passed_over(tmp_path):
  path = tmp_path / "last.pth"
  options = argparse.Namespace(lr=0.1), collections.Counter([150, 180])
  torch_files.write(path, {"opt": options, "model": {"w": np.ones(2, np.float32)}})
  np.testing.assert_array_equal(torch_reader.find_state_dict(torch_reader.read(path), path)["w"], 1)


@pytest.mark.parametrize("keep", [10, 100, 0.5, -20])
@pytest.mark.parametrize("write", WRITERS)
def test_truncated(write, keep, tmp_path):
  path = tmp_path / "model.pth"
  write(path, arrays())
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
    torch_reader.find_state_dict(torch_reader.read(path), path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, {"model": {"w": 3}}, [1, 2]])
def test_without_weights(content, tmp_path):
  path = tmp_path / "model.pth"
  torch_files.write(path, content)
  with pytest.raises(UserError, match="holds no state_dict"):
    torch_reader.find_state_dict(torch_reader.read(path), path)


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
    found = torch_reader.find_state_dict(torch_reader.read(path), path)
    expected = np.load({str(tmp_path / "expected.npz")!r})
    assert set(found) == set(expected)
    for name in expected:
      np.testing.assert_array_equal(np.asarray(found[name], np.float32), expected[name])
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=os.environ)


def test_files_that_pytorch_writes_in_the_older_format(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "model.tar"
  whole = torch.arange(6.0)
  content = {"state_dict": {"w": whole.reshape(2, 3), "part": whole[2:4]}, "epoch": 3}
  torch.save(content, path, _use_new_zipfile_serialization=False)
  found = torch_reader.find_state_dict(torch_reader.read(path), path)
  np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3))
  np.testing.assert_array_equal(found["part"], [2, 3])


def test_the_first_rebuild_function_of_pytorch(tmp_path):
  path = tmp_path / "old.th"
  torch_files.write_legacy(path, {"state_dict": arrays(), "best_prec1": 93.5}, rebuild="_rebuild_tensor")
  found = torch_reader.find_state_dict(torch_reader.read(path), path)
  np.testing.assert_array_equal(found["single"], arrays()["single"])


@pytest.mark.parametrize(
  "key", ["model", "state_dict", "model_state_dict", "net", "net_state_dict", "network", "weights"]
)
def test_where_training_scripts_put_the_weights(key):
  w = np.ones(2, np.float32)
  content = {"optimizer_state_dict": {"state": {}}, key: {"w": w}, "epoch": 3}
  assert torch_reader.find_state_dict(content, "file")["w"] is w


def program_of(size, key="0", kind="FloatStorage"):
  """A pickle of one tensor [1] whose storage claims a number of elements."""
  writer = torch_files._Storage(torch_files._global("torch", kind), key, np.empty(0), ())
  writer.reference = (*writer.reference[:4], size)
  rebuild = torch_files._global("torch._utils", "_rebuild_tensor_v2")
  buffer = io.BytesIO()
  tensor = torch_files._Rebuilt(rebuild, writer, 0, (1,), (1,), False, {})
  torch_files._Pickler(buffer, protocol=2).dump({"w": tensor})
  return buffer.getvalue()


def test_storages_that_claim_more_than_the_file_has(tmp_path):
  with torch_files._fake_torch():
    claims = program_of(1 << 40)
  torch_files.write_legacy_file(tmp_path / "old", claims, {"0": np.ones(1, np.float32)})
  torch_files.write_archive(tmp_path / "new", claims, {"0": bytes(4)})
  for name, message in (("old", "tensors are larger than the file"), ("new", "larger than its data")):
    with pytest.raises(UserError, match=f"refused: .*{message}"):
      torch_reader.read(tmp_path / name)


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
  "data, counts, message",
  [
    ({}, {}, "refused: a tensor without its data"),
    ({"1": ONE}, {}, "refused: a tensor without its data"),
    ({"0": ONE}, {"0": 2}, "refused: data of another size than its tensor's"),
    ({"0": ONE, "9": ONE}, {}, "refused: data of another size than its tensor's"),
    ({"0": ONE[:0]}, {"0": 1}, "broken or not a PyTorch checkpoint"),
  ],
)
def test_storages_of_the_older_format_that_do_not_fit(data, counts, message, tmp_path):
  with torch_files._fake_torch():
    program = program_of(1)
  torch_files.write_legacy_file(tmp_path / "old", program, data, counts)
  with pytest.raises(UserError, match=message):
    torch_reader.read(tmp_path / "old")


def test_compressed_members_are_refused(tmp_path):
  with torch_files._fake_torch():
    program = program_of(1 << 20)
  path = tmp_path / "bomb.pth"
  torch_files.write_archive(path, program, {"0": bytes(4 << 20)}, zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 1 << 16
  with pytest.raises(UserError, match=r"refused: its member data.pkl is compressed"):
    torch_reader.read(path)


def test_members_larger_than_the_file_are_refused(tmp_path):
  path = tmp_path / "bomb.pth"
  torch_files.write(path, {"w": np.ones(1037, np.float32)})
  content = path.read_bytes()
  size, claimed = struct.pack("<I", 4 * 1037), struct.pack("<I", 1 << 30)
  path.write_bytes(content.replace(size, claimed))
  with pytest.raises(UserError, match=r"refused: its members are larger than the file"):
    torch_reader.read(path)


def test_a_pickle_cannot_make_a_large_table(tmp_path):
  program = (
    b"\x80\x02}r" + struct.pack("<I", (1 << 32) - 1) + b"."
  )  # memorises a dictionary under a huge number
  for write in (torch_files.write_archive, torch_files.write_legacy_file):
    write(tmp_path / "model.pth", program, {})
    with pytest.raises(UserError, match="refused: a pickle that numbers more objects than it has"):
      torch_reader.read(tmp_path / "model.pth")


def test_a_pickle_cannot_change_the_reader(tmp_path):
  for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
    program = b"\x80\x02ctorch._utils\n" + name.encode() + b"\n(NX\x0c\x00\x00\x00__defaults__)\x86b."
    torch_files.write_archive(tmp_path / "model.pth", program, {})
    with pytest.raises(UserError, match="broken or not a PyTorch checkpoint"):
      torch_reader.read(tmp_path / "model.pth")


def test_a_folder_is_named(tmp_path):
  with pytest.raises(UserError, match="a folder; give the checkpoint's file"):
    torch_reader.read(tmp_path)
