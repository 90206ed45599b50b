"""A study of four units on scikit-learn's digits, which save often."""

from smskd_jax.config.schema import experiment, method, network, stage
from smskd_jax.config.study_schema import study
from tiny import SMALL

COMMON = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
OWN = {"data": {"source": "digits"}, "checkpoint": {"every_steps": 10}}
NETWORKS = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}


def variant(temperature, epochs):
  kd = method("kd", temperature=temperature)
  taught = stage("student", teachers=("teacher",), methods=(kd,), epochs=epochs, **COMMON)
  return experiment(networks=NETWORKS, stages=(taught,), **OWN)


def alone(rate):
  fast = stage("student", optimizer={"learning_rate": rate}, **COMMON)
  return experiment(networks={"student": NETWORKS["student"]}, stages=(fast,), **OWN)


def get_config(arg=""):
  """With the epochs of a student, 11 steps each, four units and a teacher; without, two units: one fails."""
  if not arg:
    return study(seeds=(0,), variants={"alone": alone(0.1), "exploding": alone(1e30)})
  teacher = {"networks": {"teacher": NETWORKS["teacher"]}, "stages": (stage("teacher", **COMMON),)}
  return study(
    seeds=(0, 1),
    teachers=experiment(**teacher, **OWN),
    variants={"warm": variant(4.0, int(arg)), "hot": variant(8.0, int(arg))},
  )
