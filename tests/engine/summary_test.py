"""Tests of engine/summary.py: what is told of the data. Costs are in experiment_test.py."""

import numpy as np

from smskd_jax import data
from smskd_jax.engine import summary


def test_classes_without_images_are_told(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
  names, label = ["cat", "dog", "emu", "fox"], np.arange(60) % 3
  arrays = {"train_images": image, "train_labels": label, "test_images": image[:20]}
  np.savez(tmp_path / "a.npz", test_labels=np.array([0, 2])[np.arange(20) % 2], class_names=names, **arrays)
  dataset = data.load(f"npz:{tmp_path}/a.npz", validation=0.2)
  assert summary.missing_classes(dataset).splitlines() == [
    "",
    "no train images of 1 of the classes: fox",
    "no validation images of 1 of the classes: fox",
    "no test images of 2 of the classes: dog, fox",
  ]
  assert summary.missing_classes(data.load("digits")) == ""
