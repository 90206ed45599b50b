"""Tests of exchange/torch_writer.py: what is written is read again, by our reader and by PyTorch."""

import numpy as np
import pytest

from smskd_jax.exchange import torch_reader, torch_writer
from smskd_jax.exchange.exported_network import ExportedNetwork

CONTENT = {
  "model": {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "n": np.array(3),
  },
  "half": {"x": np.ones(2, np.float16)},
  "class_names": ["Köter", "cat"],
  "mean": [0.5, -1e-30],
  "size": (3, -4),
  "yes": True,
  "no": False,
}


def check(found, as_array):
  assert found.keys() == CONTENT.keys()
  for name in ("model", "half"):
    for key, x in CONTENT[name].items():
      np.testing.assert_array_equal(as_array(found[name][key]), x)
  for name in ("class_names", "mean", "size", "yes", "no"):
    assert found[name] == CONTENT[name] and type(found[name]) is type(CONTENT[name])


def test_our_reader_reads_it(tmp_path):
  torch_writer.write(tmp_path / "file.pth", CONTENT)
  check(torch_reader.read(tmp_path / "file.pth"), np.asarray)


def test_pytorch_reads_it(tmp_path):
  torch = pytest.importorskip("torch")
  torch_writer.write(tmp_path / "file.pth", CONTENT)
  check(torch.load(tmp_path / "file.pth", weights_only=True), lambda x: x.numpy())


def test_refuses_what_it_cannot_write(tmp_path):
  with pytest.raises(TypeError, match="cannot write a set"):
    torch_writer.write(tmp_path / "file.pth", {"a": {1}})


def test_a_network_without_a_counterpart_is_refused(tmp_path):
  trained = ExportedNetwork("simkd", {}, {}, (8, 8, 1), (0.0,), (1.0,), ("a", "b"))
  with pytest.raises(ValueError, match="--format: torch: 'simkd' has no counterpart"):
    torch_writer.write_trained(trained, tmp_path / "file.pth")
