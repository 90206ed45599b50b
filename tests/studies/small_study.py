"""Config of a small study on scikit-learn's digits with frequent checkpoints, for tests that start processes."""

from smskd_jax.config import experiment, method, network, stage, study
from tiny import SMALL

COMMON = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
SETTINGS = {"data": {"source": "digits"}, "checkpoint": {"every_steps": 10}}
NETWORKS = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}


def distilled(temperature, epochs):
  kd = method("kd", temperature=temperature)
  student = stage("student", teachers=("teacher",), methods=(kd,), epochs=epochs, **COMMON)
  return experiment(networks=NETWORKS, stages=(student,), **SETTINGS)


def supervised(learning_rate):
  student = stage("student", optimizer={"learning_rate": learning_rate}, **COMMON)
  return experiment(networks={"student": NETWORKS["student"]}, stages=(student,), **SETTINGS)


def get_config(arg=""):
  """With a number of epochs, of 11 steps each: a teacher and four units. Without: two units, of which one fails."""
  if not arg:
    return study(seeds=(0,), variants={"alone": supervised(0.1), "exploding": supervised(1e30)})
  teachers = experiment(
    networks={"teacher": NETWORKS["teacher"]}, stages=(stage("teacher", **COMMON),), **SETTINGS
  )
  variants = {"warm": distilled(4.0, int(arg)), "hot": distilled(8.0, int(arg))}
  return study(seeds=(0, 1), teachers=teachers, variants=variants)
