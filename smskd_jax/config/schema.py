"""What an experiment's config may say: every field, its default and what it means.

A config file builds an `ml_collections.ConfigDict` with `experiment`, `network`, `stage` and `method` below. They
write every field out, so that the command line can change any of them and the resolved config says everything.
`resolve` fills and checks it: the first mistake ends in one line that names the field, the value and the fix.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import custom, losses, models
from smskd_jax.config import merge, prerequisites, validate
from smskd_jax.data import mixing, views
from smskd_jax.errors import UserError
from smskd_jax.losses import entries
from smskd_jax.training import optimizer, schedule

EXPERIMENT: dict[str, Any] = {
  "seed": 0,
  "data": {
    "source": "fashion_mnist_small",  # a name of smskd_jax.data.SOURCES, npz:FILE, folder:DIR or tfds:NAME
    "folder": "",  # where the source's files are; '': the source's usual place
    "validation": 0.0,  # share of the training images held out, stratified by class; 0: none
    "split_seed": 0,  # of the hold-out and nothing else, so that runs of different seeds share it
    "image_size": 0,  # the side of the square that all images are resized to; 0: as they are
    "streamed": False,  # leave the images of folder: and tfds: where they are; read and cut them when they are needed
    "min_crop_area": 0.08,  # of a streamed image, the least share that a step sees; the greatest is 1
    "center_crop_fraction": 0.875,  # of its shorter side, the share that is tested on: 224 of 256
    "unlabeled": "",  # a source whose training images stages may use without their labels; '': none
    "extra_tests": (),  # 'cifar10.1', corruptions as 'gaussian_noise:3', or 'corruptions'; see data/extra_tests.py
  },
  "networks": {},  # name -> network(...)
  "stages": (),  # of stage(...), in order
  "evaluate": {
    "every_epochs": 1,
    "batch_size": 500,
    "calibration_bins": 15,
    "num_forgetting_images": 1000,  # of the test set, on which earlier stages' losses are computed again; 0: none
    "feature_images": 2000,  # of the test set, of which features are kept and compared when a stage ends; 0: none
  },
  # 93 in the 240 epochs of 781 steps of CIFAR's usual recipe. A kill costs at most so many steps, SIGTERM none.
  "checkpoint": {"every_steps": 2000, "max_to_keep": 2},
  "log_every_steps": 50,
  "num_workers": 0,  # processes that decode streamed images; 0: a thread for each core
  "steps_per_call": 0,  # in one program, between what happens beside them; 0: 1 on a CPU, 16 on others
  "probe_every_steps": 0,  # norms and cosines of the gradients of task, methods and reference; each costs a step or two
}

STAGE: dict[str, Any] = {
  "name": "",  # how reports and other stages call it; '': made of the learner and its methods
  "network": "student",  # the network that trains
  "init": "previous",  # from where the learner's last stage ended, or its `variables`; 'fresh': newly initialised
  # from the learner's previous stage: its 'variables' alone; 'optimizer': momentum and the like too; 'all': methods and
  # random streams too, so that the stage continues the previous one. The paper leaves it open
  "carry_over": "variables",
  "teachers": (),  # names of networks that an earlier stage has trained, or that have `variables`
  "methods": (),  # of method(...); several are trained jointly
  "task_weight": 1.0,  # lambda_c, of cross-entropy
  "label_smoothing": 0.0,
  "reference": {
    "stage": "none",  # whose student anchors: 'previous', the name of an earlier stage of the learner, or 'none'
    "weight": 0.5,  # lambda_r
    "divergence": "student_to_reference",  # KL(student || reference), or 'reference_to_student'
    "temperature": 1.0,  # tau of both networks in the divergence. The paper leaves it open
    "scale_by_temperature_squared": False,  # multiply the divergence by tau^2
    "weighting": "reference_tcp",  # of each image: a name of training/weighting.py
    "tcp_temperature": 1.0,  # of the softmax in the weights. The paper leaves it open
    "normalize": False,  # divide the weights by their mean over the batch
  },
  "images": "train",  # what it trains on: 'train', or 'unlabeled', the images of data.unlabeled alone
  "max_images": 0,  # a part of them, in the proportions of the classes, drawn by data.split_seed; 0: all
  "epochs": 1,
  "alternate_epochs": 0,  # after so many the methods take turns; 0: all at once
  "batch_size": 64,  # over all devices
  "unlabeled_batch_size": 0,  # images of data.unlabeled beside each batch, for the distillation terms alone
  "views": ("crop_flip",),  # names of data/views.py, joined by +; every term is the mean over the views
  "augment": {},  # part of a view -> its options, as {"crop_flip": {"padding": 4}}
  "mix": {"name": "none"},  # 'mixup' or 'cutmix', with its options
  "trainable": "all",  # of the learner; 'head': its linear classifier alone, while batch norm goes on to remember
  "teacher_statistics": "running",  # of the teachers' batch norm; 'batch': those of each batch, as in training
  "teacher_cache": "off",  # 'float32' or 'float16': ask the teachers once for each view to come, and keep what they say
  "keep_checkpoint": "last",  # what the stage ends with: its 'last' state, or that of the epoch best by 'validation'
  "ema_decay": 0.0,  # decay, by the step, of the learner's moving average, which is then evaluated and kept; 0: none
  "optimizer": {
    "name": "sgd",
    "learning_rate": 0.05,
    "base_batch_size": 0,  # images that the rate is meant for: it grows in proportion to those of an update; 0: any
    "clip_norm": 0.0,  # the greatest norm of the gradient; 0: no bound
    "accumulate_steps": 1,  # steps that give one update together
  },  # its other fields: the factory's in training/optimizer.py
  "schedule": {
    "name": "cosine",
    "start_epoch": 0,  # epochs of the schedule that earlier stages of the learner have used
    "total_epochs": 0,  # of a schedule that runs through several stages; 0: the stage has a schedule of its own
  },  # its other fields: the factory's in training/schedule.py
}

NETWORK: dict[str, Any] = {
  "model": "",  # a name of smskd_jax.models.MODELS, or custom:package.module:Class; other fields are the model's own
  "num_classes": 0,  # 0: as many as the data has
  "variables": "",  # folder of an imported network, a run or a checkpoint, to begin with; '': freshly initialised
}

METHOD: dict[str, Any] = {
  "name": "",  # a name of smskd_jax.losses.METHODS, or custom:package.module:name; other fields are the method's own
  "weight": 1.0,  # of the term in the objective
  "warmup_epochs": 0.0,  # over which the weight grows to its value, epoch by epoch; 0: none
  "plugins": (),  # of plugin(...), which change what the method sees; the first is the outermost
}

PLUGIN: dict[str, Any] = {
  "name": "",  # a name of smskd_jax.losses.PLUGINS; other fields are the plug-in's own
}


def network(model: str, **options: Any) -> ConfigDict:
  """A network's entry: a name of `MODELS` and the options of its factory."""
  return merge.to_config_dict(_network("network", {"model": model} | options))


def method(name: str, **fields: Any) -> ConfigDict:
  """A distillation term: a name of `METHODS` or an import path, its outer `weight` and its hyper-parameters."""
  return merge.to_config_dict(_method("method", {"name": name} | fields))


def plugin(name: str, **fields: Any) -> ConfigDict:
  """A plug-in of a method: a name of `PLUGINS` and its hyper-parameters."""
  return merge.to_config_dict(_plugin("plugin", {"name": name} | fields))


def stage(network: str, **fields: Any) -> ConfigDict:
  """A stage: the fields of `STAGE`; nested ones (`reference`, `optimizer`, ...) may be given in part."""
  return merge.to_config_dict(_stage("stage", {"network": network} | fields))


def experiment(**fields: Any) -> ConfigDict:
  """A whole config: the fields of `EXPERIMENT`; nested ones may be given in part."""
  return merge.to_config_dict(_experiment(fields))


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Reads the string behind a config file's colon, as in `file.py:epochs=240,student=resnet20`.

  Args:
    arg: comma-separated `name=value`, or None.
    **defaults: every name that is allowed; its value gives the type (bool, int, float or str) and the default.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return ConfigDict(defaults | merge.parse_items("config argument", arg or "", defaults))


def resolve(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """Checks a config and returns it as plain dicts and tuples, with every default written out and every stage named.

  Raises:
    UserError: the first mistake found.
  """
  resolved = _experiment(merge.to_plain(config))
  resolved["stages"] = _name_stages(resolved["stages"])
  validate.check_values(resolved)
  prerequisites.check(resolved)
  return resolved


def _experiment(entry: Mapping[str, Any]) -> dict[str, Any]:
  filled = merge.merge("config", EXPERIMENT, entry, skip=("networks",))
  for field, kind in (("networks", dict), ("stages", tuple)):
    filled[field] = merge.coerce(kind(), f"config.{field}", merge.to_plain(entry.get(field, kind())))
  networks = {name: _network(f"config.networks.{name}", entry) for name, entry in filled["networks"].items()}
  stages = tuple(_stage(f"config.stages[{i}]", entry) for i, entry in enumerate(filled["stages"]))
  return filled | {"networks": networks, "stages": stages}


def _stage(field: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  filled = merge.merge(field, STAGE, entry, skip=("optimizer", "schedule", "augment", "mix"))
  methods = tuple(
    _method(f"{field}.methods[{i}]", m) for i, m in enumerate(merge.to_plain(filled["methods"]))
  )
  return filled | {
    "methods": methods,
    "optimizer": merge.merge_entry(
      f"{field}.optimizer", STAGE["optimizer"], filled["optimizer"], optimizer.OPTIMIZERS
    ),
    "schedule": merge.merge_entry(
      f"{field}.schedule", STAGE["schedule"], filled["schedule"], schedule.SCHEDULES
    ),
    "augment": _augment(f"{field}.augment", filled["views"], filled["augment"]),
    "mix": merge.merge_entry(f"{field}.mix", STAGE["mix"], filled["mix"], mixing.MIXES),
  }


def _augment(field: str, view_names: tuple[str, ...], options: Any) -> dict[str, Any]:
  """The options of every part of the views. Those of other views are dropped: `views` may be changed alone."""
  template: dict[str, Any] = {}
  for i, name in enumerate(view_names):
    of_view = f"{field.removesuffix('augment')}views[{i}]"
    name = merge.coerce("", of_view, name)
    try:
      template |= views.view_options(name)
    except ValueError as error:
      raise UserError(f"{of_view}: {error}") from error
  options = merge.coerce({}, field, merge.to_plain(options))
  used = {part: chosen for part, chosen in options.items() if part in template or part not in views.VIEWS}
  return merge.merge(field, template, used)


def _network(field: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  table = _factories(field, "model", entry, models.MODELS, models.factory)
  name = merge.to_plain(entry).get("model", "")
  return merge.merge_entry(field, NETWORK, _drop_other_options(entry, table.get(name)), table)


def _factories(
  field: str, of: str, given: Any, table: Mapping[str, Callable], factory: Callable[[str], Callable]
) -> Mapping[str, Callable]:
  """The table of factories in which an entry's name is looked up: of a user's own, one of it alone."""
  name = merge.coerce({}, field, merge.to_plain(given)).get(of, "")
  if not custom.is_custom(str(name)):
    return table
  try:
    return {name: factory(name)}
  except ValueError as error:
    raise UserError(f"{field}.{of}: {error}") from error


def _drop_other_options(given: Mapping[str, Any], factory: Callable[..., Any] | None) -> dict[str, Any]:
  """A network's fields without other networks' options at their defaults: `model` may be changed alone."""
  own = NETWORK if factory is None else NETWORK | merge.default_kwargs(factory)
  others = [merge.default_kwargs(other) for other in models.MODELS.values()]
  at_default = lambda name, value: any(name in other and other[name] == value for other in others)
  plain = merge.to_plain(given)
  return {name: value for name, value in plain.items() if name in own or not at_default(name, value)}


def _method(field: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  table = _factories(field, "name", entry, losses.METHODS, entries.factory)
  filled = merge.merge_entry(field, METHOD, entry, table)
  plugins = tuple(_plugin(f"{field}.plugins[{i}]", p) for i, p in enumerate(filled["plugins"]))
  return filled | {"plugins": plugins}


def _plugin(field: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  return merge.merge_entry(field, PLUGIN, entry, losses.PLUGINS)


def _name_stages(stages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
  """The stages, each with a name: the given one, or the learner and its methods, numbered where it comes again."""
  seen: Counter[str] = Counter()
  named = []
  for entry in stages:
    name = entry["name"]
    if not name:
      name = "_".join(
        [entry["network"], "+".join(entries.metric_name(m["name"]) for m in entry["methods"])]
      ).rstrip("_")
      seen[name] += 1
      name += f"_{seen[name]}" if seen[name] > 1 else ""
    named.append(entry | {"name": name})
  return tuple(named)
