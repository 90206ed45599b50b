"""A network that was trained elsewhere brings the normalisation of its images, wherever it is used."""

import jax
import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.config import experiment, method, network, resolve, stage
from smskd_jax.data.dataset import ChannelStats
from smskd_jax.engine import experiment as experiment_lib
from smskd_jax.engine.plan import make_plans
from smskd_jax.exchange import exported_network, exporters, pretrained, variables
from smskd_jax.models import introspection, renormalized
from smskd_jax.runtime import eval_outputs, workdir
import tiny

OWN = ChannelStats((0.9,), (0.05,))  # far from those of the digits


def network_and_variables():
  made = tiny.Small(num_classes=10, width=0.25)
  rng = np.random.default_rng(0)
  draw = {
    "params": lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    "batch_stats": lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32),
  }
  shapes = introspection.variable_shapes(made, (8, 8, 1))
  return made, {name: jax.tree.map(draw[name], tree) for name, tree in shapes.items()}


def logits_by_hand(moments):
  """Logits of the digits' test images [n, h, w, c], each pixel normalised by NumPy."""
  made, tree = network_and_variables()
  image = data.load(source="digits").test.image.astype(np.float64) / 255
  normalized = (image - moments.mean) / moments.std
  return jax.jit(made.apply)(tree, normalized.astype(np.float32)).logits


@pytest.mark.parametrize("channels", [1, 3])
def test_a_renormalized_network_has_the_networks_variables(channels):
  made = tiny.Small(num_classes=10, width=0.25)
  own, of_data = (
    ChannelStats((0.9, 0.5, 0.1)[:channels], (0.05, 0.2, 0.3)[:channels]),
    ChannelStats((0.2,) * channels, (0.5,) * channels),
  )
  fed = renormalized.make(made, own, of_data)
  shape = (8, 8, channels)
  assert jax.tree.structure(introspection.variable_shapes(fed, shape)) == jax.tree.structure(
    introspection.variable_shapes(made, shape)
  )
  picture = np.random.default_rng(0).random((2, *shape))
  tree = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), introspection.variable_shapes(made, shape))

  def seen(of):
    return ((picture - of.mean) / of.std).astype(np.float32)

  expected, found = made.apply(tree, seen(own)), fed.apply(tree, seen(of_data))
  for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
  assert renormalized.make(made, None, of_data) is made and renormalized.make(made, of_data, of_data) is made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Folders of the same variables, with and without their normalisation."""
  root, (_, tree) = tmp_path_factory.mktemp("pretrained"), network_and_variables()
  variables.save(root / "own", tree, {"normalization": OWN._asdict()})
  variables.save(root / "plain", tree, {"normalization": None})
  variables.save(root / "datas", tree, {"normalization": data.load(source="digits").channel_stats._asdict()})
  return root


def config(folder, cache="off", student=None, **fields):
  """A teacher with variables, and two stages of a student, the second with a reference."""
  common = {
    "teachers": ("teacher",),
    "methods": (method("kd"),),
    "batch_size": 128,
    "augment": {"crop_flip": {"padding": 1, "flip": False}},
    "teacher_cache": cache,
  }
  return experiment(
    data={"source": "digits"},
    evaluate={"feature_images": 0},
    networks={
      "teacher": network(tiny.SMALL, width=0.25, variables=str(folder)),
      "student": network(tiny.SMALL, width=0.25, variables=str(student or "")),
    },
    stages=(
      stage("student", name="one", **common, **fields),
      stage("student", name="two", **common, reference={"stage": "previous"}),
    ),
  )


@pytest.fixture(scope="module")
def ran(folders, tmp_path_factory):
  """A run whose student begins with variables of the same normalisation as its teacher's."""
  root = tmp_path_factory.mktemp("runs")
  made = config(folders / "own", student=folders / "own")
  return root, experiment_lib.run(made, root / "run", store=root / "store", cpu_devices=2)


def test_a_teacher_is_fed_by_its_own_normalisation(ran, folders):
  root, result = ran
  of_teacher = next(one for one in result["pretrained"] if one["network"] == "teacher")
  found = eval_outputs.logits(eval_outputs.read(workdir.pretrained_outputs_path(root / "run", "teacher")))[
    "test"
  ]
  np.testing.assert_allclose(found, logits_by_hand(OWN), rtol=1e-3, atol=1e-3)
  assert tuple(of_teacher["normalization"]["mean"]) == OWN.mean

  def load(name):
    return variables.load("field", str(folders / name), "teacher")

  assert of_teacher["key"] == load("own").key != load("plain").key
  assert load("own").fingerprint == load("plain").fingerprint
  moments = data.load(source="digits").channel_stats
  assert load("datas").for_data(moments).key == load("plain").key


def test_a_student_keeps_the_normalisation_of_the_variables_that_it_begins_with(ran, tmp_path):
  root, result = ran
  run = workdir.read_run("field", root / "run")
  found = pretrained.load_run_network("field", run, "student").exported
  assert ChannelStats(found.mean, found.std) == OWN
  # Its programs and files for elsewhere say what the run's evaluation said.
  images = data.load(source="digits").test.image[:20]
  entry = root / "store" / result["stages"][-1]["key"]
  expected = eval_outputs.logits(eval_outputs.read(entry / "eval_outputs.npz"))["test"][:20]
  exporters.write_stablehlo(found, tmp_path / "program")
  program = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
  np.testing.assert_allclose(program.call(images), expected, rtol=1e-3, atol=1e-3)
  exported_network.write(found, tmp_path / "student.safetensors")
  for source in (tmp_path / "student.safetensors", root / "run", entry / "final"):
    assert variables.load("field", str(source), "student").normalization == OWN


def test_each_network_of_a_stage_is_fed_by_what_it_begins_with(folders):
  dataset = data.load(source="digits")
  made = config(folders / "own", student=folders / "own")
  made.stages[1].init = "scratch"
  given = {name: variables.load("field", str(folders / "own"), name) for name in ("teacher", "student")}
  one, two = (plan.stage for plan in make_plans(resolve(made), dataset, given))
  assert renormalized.channel_stats(one.student) == renormalized.channel_stats(one.teachers[0]) == OWN
  # From scratch a network has the data's normalisation; the reference goes on with its own.
  assert renormalized.channel_stats(two.student) is None
  assert (
    renormalized.channel_stats(two.reference_module) == renormalized.channel_stats(two.teachers[0]) == OWN
  )
  given = {name: variables.load("field", str(folders / "datas"), name) for name in ("teacher", "student")}
  one, two = (plan.stage for plan in make_plans(resolve(made), dataset, given))
  assert renormalized.channel_stats(one.student) is renormalized.channel_stats(two.reference_module) is None


def test_cached_outputs_are_those_of_the_teacher(ran, folders, tmp_path):
  root, uncached = ran
  cached = experiment_lib.run(
    config(folders / "own", "float32", folders / "own"), tmp_path / "a", store=root / "store", cpu_devices=2
  )

  def loss(result):
    return result["stages"][0]["metrics"]["last"]["test/teacher_kl"]

  assert loss(cached) == pytest.approx(loss(uncached), rel=1e-3)
  plain = experiment_lib.run(
    config(folders / "plain", "float32", folders / "own"), tmp_path / "b", store=root / "store", cpu_devices=2
  )
  # The same variables without a normalisation of their own are another teacher, with a cache of its own.
  assert abs(loss(plain) - loss(cached)) > 1e-2
  keys = {
    next(one["key"] for one in of["pretrained"] if one["network"] == "teacher") for of in (cached, plain)
  }
  assert len(keys) == 2 and all(list((root / "store" / key).glob("views-*")) for key in keys)


@pytest.mark.slow
def test_several_parallel_seeds(ran, folders, tmp_path):
  made = [config(folders / "own", student=folders / "own") for _ in range(2)]
  for seed, of_seed in enumerate(made):
    of_seed.seed = seed
  pairs = [(of_seed, tmp_path / str(seed)) for seed, of_seed in enumerate(made)]
  results = experiment_lib.run_seeds(pairs, store=tmp_path / "store", cpu_devices=2)

  def value(result):
    return result["stages"][1]["metrics"]["last"]["test/nll"]

  assert value(results[0]) == pytest.approx(value(ran[1]), rel=1e-4) != value(results[1])
