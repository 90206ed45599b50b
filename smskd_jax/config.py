"""What an experiment's config may say: every field, its default and what it means.

A config file builds an `ml_collections.ConfigDict` with `experiment`, `network`, `stage` and `method` below. They
write every field out, so that the command line can change any of them and the resolved config says everything.
`resolve` fills and checks it: the first mistake ends in one line that names the field, the value and the fix.
"""

from collections import Counter
from collections.abc import Callable, Mapping
import inspect
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import checks, losses, models
from smskd_jax.errors import UserError, unknown
from smskd_jax.training import optimizer

EXPERIMENT: dict[str, Any] = {
  "seed": 0,
  "data": {
    "source": "fashion_mnist_small",  # a name of smskd_jax.data.SOURCES, npz:FILE, folder:DIR or tfds:NAME
    "folder": "",  # where the source's files are; '': the source's usual place
    "validation": 0.0,  # share of the training images held out, stratified by class; 0: none
    "split_seed": 0,  # of the hold-out and nothing else, so that runs of different seeds share it
  },
  "networks": {},  # name -> network(...)
  "stages": (),  # of stage(...), in order
  "evaluate": {"every_epochs": 1, "batch_size": 500, "calibration_bins": 15},
  "checkpoint": {"every_steps": 500, "keep": 2},
  "log_every_steps": 50,
}

STAGE: dict[str, Any] = {
  "name": "",  # how reports and other stages call it; '': made of the learner and its methods
  "learner": "student",  # the network that trains
  "start": "previous",  # from where the learner's last stage ended, or 'fresh': newly initialised
  "teachers": (),  # names of networks that an earlier stage has trained
  "methods": (),  # of method(...); several are trained jointly
  "task_weight": 1.0,  # lambda_c, of cross-entropy. Our reading: the paper gives no value
  "reference": {
    "stage": "none",  # whose student anchors: 'previous', the name of an earlier stage of the learner, or 'none'
    "weight": 1.0,  # lambda_r. Our reading: the paper gives no value
    "temperature": 4.0,  # tau of the reference term. Our reading: a KL divergence, reference first, times tau^2
    "weighting": "one_minus_tcp",  # how the teacher's confidence scales it. Our reading: less where confident
    "tcp_temperature": 1.0,  # of the teacher's softmax in TCP. Our reading
    "normalize": False,  # divide the weights by their mean over the batch. Our reading: no
  },
  "epochs": 1,
  "batch_size": 64,  # over all devices
  "augment": {"padding": 4, "flip": True},
  "optimizer": {
    "name": "sgd",
    "learning_rate": 0.05,
  },  # its other fields: the factory's in training/optimizer.py
  "schedule": {"name": "cosine"},  # likewise
}

NETWORK: dict[str, Any] = {
  "model": "",  # a name of smskd_jax.models.MODELS; other fields are the model's own
  "num_classes": 0,  # 0: as many as the data has
}

METHOD: dict[str, Any] = {
  "name": "",  # a name of smskd_jax.losses.METHODS; other fields are the method's own
  "weight": 1.0,  # of the term in the objective
}


def network(model: str, **options: Any) -> ConfigDict:
  """A network's entry: a name of `MODELS` and the options of its factory."""
  return _overridable(_network("network", {"model": model} | options))


def method(name: str, **fields: Any) -> ConfigDict:
  """A distillation term: a name of `METHODS`, its outer `weight` and its hyper-parameters."""
  return _overridable(_method("method", {"name": name} | fields))


def stage(learner: str, **fields: Any) -> ConfigDict:
  """A stage: the fields of `STAGE`; nested ones (`reference`, `optimizer`, ...) may be given in part."""
  return _overridable(_stage("stage", {"learner": learner} | fields))


def experiment(**fields: Any) -> ConfigDict:
  """A whole config: the fields of `EXPERIMENT`; nested ones may be given in part."""
  return _overridable(_experiment(fields))


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Reads the string behind a config file's colon, as in `file.py:epochs=240,student=resnet20`.

  Args:
    arg: comma-separated `name=value`, or None.
    **defaults: every name that is allowed; its value gives the type (bool, int, float or str) and the default.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  values = ConfigDict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, _, text = item.partition("=")
    if name not in defaults:
      raise unknown("config argument", name, defaults)
    values[name] = _parse(f"config argument {name}", text, type(defaults[name]))
  return values


def resolve(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """Checks a config and returns it as plain dicts and tuples, with every default written out and every stage named.

  Raises:
    UserError: the first mistake found.
  """
  resolved = _experiment(_plain(config))
  resolved["stages"] = _named(resolved["stages"])
  checks.check_values(resolved)
  checks.check_stages(resolved)
  return resolved


def _experiment(given: Mapping[str, Any]) -> dict[str, Any]:
  filled = _filled("config", EXPERIMENT, given)
  for field, kind in (("networks", dict), ("stages", tuple)):
    filled[field] = _typed(f"config.{field}", kind(), _plain(given.get(field, kind())))
  networks = {name: _network(f"config.networks.{name}", entry) for name, entry in filled["networks"].items()}
  stages = tuple(_stage(f"config.stages[{i}]", entry) for i, entry in enumerate(filled["stages"]))
  return filled | {"networks": networks, "stages": stages}


def _stage(field: str, given: Mapping[str, Any]) -> dict[str, Any]:
  filled = _filled(field, STAGE, given)
  methods = tuple(_method(f"{field}.methods[{i}]", m) for i, m in enumerate(_plain(filled["methods"])))
  return filled | {
    "methods": methods,
    "optimizer": _entry(f"{field}.optimizer", STAGE["optimizer"], filled["optimizer"], optimizer.OPTIMIZERS),
    "schedule": _entry(f"{field}.schedule", STAGE["schedule"], filled["schedule"], optimizer.SCHEDULES),
  }


def _network(field: str, given: Mapping[str, Any]) -> dict[str, Any]:
  return _entry(field, NETWORK, given, models.MODELS)


def _method(field: str, given: Mapping[str, Any]) -> dict[str, Any]:
  return _entry(field, METHOD, given, losses.METHODS)


def options(entry: Mapping[str, Any], *own: str) -> dict[str, Any]:
  """An entry's hyper-parameters: all its fields but the named ones, which are ours."""
  return {name: value for name, value in entry.items() if name not in own}


def _entry(
  field: str, template: Mapping[str, Any], given: Any, table: Mapping[str, Callable]
) -> dict[str, Any]:
  """Fills an entry that names a factory of a table: the template's fields, then the factory's keyword arguments."""
  name_field = next(iter(template))
  given = _typed(field, {}, _plain(given))
  name = given.get(name_field, template[name_field])
  if name not in table:
    raise unknown(f"{field}.{name_field}", name, table)
  keywords = {
    p.name: p.default
    for p in inspect.signature(table[name]).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.name not in template
  }
  return _filled(field, dict(template) | keywords, given)


def _filled(field: str, template: Mapping[str, Any], given: Any) -> dict[str, Any]:
  """The template with the given values in place; nested dicts likewise, except those whose fields a table gives."""
  given = _typed(field, {}, _plain(given))
  for name in given:
    if name not in template:
      raise unknown(field, name, template)
  filled = {}
  for name, default in template.items():
    value = given.get(name, default)
    if name in ("optimizer", "schedule", "networks"):
      filled[name] = value
    elif isinstance(default, dict):
      filled[name] = _filled(f"{field}.{name}", default, value)
    else:
      filled[name] = _typed(f"{field}.{name}", default, value)
  return filled


def _typed(field: str, default: Any, value: Any) -> Any:
  """The value in the default's type; whole numbers may stand for floats, lists for tuples."""
  kind = type(default)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is tuple and isinstance(value, list | tuple):
    return tuple(value)
  if type(value) is not kind:
    raise UserError(f"{field}: {value!r} is not of type {kind.__name__}; an example is {default!r}")
  return value


def _plain(config: Any) -> Any:
  """ConfigDicts as dicts and lists as tuples, all the way down."""
  if isinstance(config, ConfigDict | Mapping):
    return {name: _plain(value) for name, value in config.items()}
  if isinstance(config, list | tuple):
    return tuple(_plain(value) for value in config)
  return config


def _overridable(value: Any) -> Any:
  """Dicts as ConfigDicts, in tuples too, so that the command line reaches `stages[1].epochs`."""
  if isinstance(value, dict):
    return ConfigDict({name: _overridable(child) for name, child in value.items()})
  return tuple(_overridable(child) for child in value) if isinstance(value, tuple) else value


def _parse(field: str, text: str, kind: type) -> Any:
  if kind is bool and text in ("True", "true", "1", "False", "false", "0"):
    return text in ("True", "true", "1")
  try:
    if kind is not bool:
      return kind(text)
  except ValueError:
    pass
  raise UserError(f"{field}: {text!r} is not of type {kind.__name__}")


def _named(stages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
  """The stages, each with a name: the given one, or the learner and its methods, numbered where it comes again."""
  seen: Counter[str] = Counter()
  named = []
  for entry in stages:
    name = entry["name"]
    if not name:
      name = "_".join([entry["learner"], "+".join(m["name"] for m in entry["methods"])]).rstrip("_")
      seen[name] += 1
      name += f"_{seen[name]}" if seen[name] > 1 else ""
    named.append(entry | {"name": name})
  return tuple(named)
