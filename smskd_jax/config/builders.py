"""Builders of configs: `experiment`, `network`, `stage`, `method`, `plugin`, `resolve`.

A config file builds an `ml_collections.ConfigDict` with these functions. They write every field of the schema out, so
that the command line can change any field and the resolved config is complete. `resolve` merges a config with the
defaults and validates it: the first mistake ends in one line that names the field, the value and the fix.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import custom, losses, models
from smskd_jax.config import merge, schema, validate
from smskd_jax.config.fields import defaults
from smskd_jax.data import mixing, views
from smskd_jax.errors import UserError
from smskd_jax.training import optimizer, schedule


def network(model: str, **options: Any) -> ConfigDict:
  """Entry of a network.

  Args:
    model: name of `MODELS`, or `custom:package.module:Class`.
    **options: further fields of `schema.NETWORK`, and keyword arguments of the model's factory.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return merge.to_config_dict(_network("network", {"model": model} | options))


def method(name: str, **fields: Any) -> ConfigDict:
  """Entry of a distillation term.

  Args:
    name: name of `METHODS`, or `custom:package.module:name`.
    **fields: further fields of `schema.METHOD`, and hyper-parameters of the method.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return merge.to_config_dict(_method("method", {"name": name} | fields))


def plugin(name: str, **fields: Any) -> ConfigDict:
  """Entry of a plug-in of a method.

  Args:
    name: name of `PLUGINS`.
    **fields: hyper-parameters of the plug-in.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return merge.to_config_dict(_plugin("plugin", {"name": name} | fields))


def stage(network: str, **fields: Any) -> ConfigDict:
  """Entry of a stage.

  Args:
    network: name of the network that the stage trains.
    **fields: further fields of `schema.STAGE`; nested ones (`reference`, `optimizer`, ...) may be given in part.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return merge.to_config_dict(_stage("stage", {"network": network} | fields))


def experiment(**fields: Any) -> ConfigDict:
  """Config of an experiment.

  Args:
    **fields: fields of `schema.EXPERIMENT`; nested ones may be given in part.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return merge.to_config_dict(_experiment(fields))


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses the arguments of a config file.

  They are the string behind the colon of `file.py:epochs=240,student=resnet20`.

  Args:
    arg: comma-separated `name=value`, or None.
    **defaults: every allowed name; the value gives the type (bool, int, float or str) and the default.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  return ConfigDict(defaults | merge.parse_items("config argument", arg or "", defaults))


def resolve(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """Validates a config and returns plain dicts and tuples.

  Every default is written out and every stage named.

  Raises:
    UserError: the first mistake found.
  """
  resolved = _experiment(merge.to_plain(config))
  resolved["stages"] = _name_stages(resolved["stages"])
  validate.check(resolved)
  return resolved


def _experiment(entry: Mapping[str, Any]) -> dict[str, Any]:
  merged = merge.merge("config", defaults(schema.EXPERIMENT), entry, skip=("networks",))
  for name, default in (("networks", {}), ("stages", ())):
    merged[name] = merge.coerce(default, f"config.{name}", merge.to_plain(entry.get(name, default)))
  networks = {name: _network(f"config.networks.{name}", entry) for name, entry in merged["networks"].items()}
  stages = tuple(_stage(f"config.stages[{i}]", entry) for i, entry in enumerate(merged["stages"]))
  return merged | {"networks": networks, "stages": stages}


def _stage(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  template = defaults(schema.STAGE)
  tables: dict[str, Mapping[str, Callable]] = {
    "optimizer": optimizer.OPTIMIZERS,
    "schedule": schedule.SCHEDULES,
    "mix": mixing.MIXES,
  }
  merged = merge.merge(path, template, entry, skip=(*tables, "augment"))
  methods = merge.to_plain(merged["methods"])
  merged["methods"] = tuple(_method(f"{path}.methods[{i}]", one) for i, one in enumerate(methods))
  merged["augment"] = _augment(path, merged["views"], merged["augment"])
  for name, table in tables.items():
    merged[name] = merge.merge_entry(f"{path}.{name}", template[name], merged[name], table)
  return merged


def _augment(path: str, view_names: tuple[str, ...], options: Any) -> dict[str, Any]:
  """Options of every part of the views.

  Options of other views are dropped, so that `views` may be changed alone.
  """
  template: dict[str, Any] = {}
  for i, name in enumerate(view_names):
    name = merge.coerce("", f"{path}.views[{i}]", name)
    try:
      template |= views.view_options(name)
    except ValueError as error:
      raise UserError(f"{path}.views[{i}]: {error}") from error
  options = merge.coerce({}, f"{path}.augment", merge.to_plain(options))
  used = {part: value for part, value in options.items() if part in template or part not in views.VIEWS}
  return merge.merge(f"{path}.augment", template, used)


def _network(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  table = _factories(path, "model", entry, models.MODELS, models.factory)
  name = merge.to_plain(entry).get("model", "")
  own = _drop_other_options(entry, table.get(name))
  return merge.merge_entry(path, defaults(schema.NETWORK), own, table)


def _factories(
  path: str, name_field: str, entry: Any, table: Mapping[str, Callable], factory: Callable[[str], Callable]
) -> Mapping[str, Callable]:
  """Factories in which the name of an entry is looked up."""
  name = merge.coerce({}, path, merge.to_plain(entry)).get(name_field, "")
  if not custom.is_custom(str(name)):
    return table
  try:
    return {name: factory(name)}
  except ValueError as error:
    raise UserError(f"{path}.{name_field}: {error}") from error


def _drop_other_options(entry: Mapping[str, Any], factory: Callable[..., Any] | None) -> dict[str, Any]:
  """Fields of a network without other models' options at their defaults."""
  own = {*schema.NETWORK, *(merge.default_kwargs(factory) if factory is not None else ())}
  others = [merge.default_kwargs(other) for other in models.MODELS.values()]

  def is_default(name: str, value: Any) -> bool:
    return any(name in other and other[name] == value for other in others)

  plain = merge.to_plain(entry)
  return {name: value for name, value in plain.items() if name in own or not is_default(name, value)}


def _method(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  table = _factories(path, "name", entry, losses.METHODS, losses.factory)
  merged = merge.merge_entry(path, defaults(schema.METHOD), entry, table)
  plugins = tuple(_plugin(f"{path}.plugins[{i}]", one) for i, one in enumerate(merged["plugins"]))
  return merged | {"plugins": plugins}


def _plugin(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  return merge.merge_entry(path, defaults(schema.PLUGIN), entry, losses.PLUGINS)


def _name_stages(stages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
  """Stages with their names."""
  counts: Counter[str] = Counter()
  named = []
  for entry in stages:
    name = entry["name"]
    if not name:
      methods = "+".join(losses.metric_name(one["name"]) for one in entry["methods"])
      name = f"{entry['network']}_{methods}".rstrip("_")
      counts[name] += 1
      name += f"_{counts[name]}" if counts[name] > 1 else ""
    named.append(entry | {"name": name})
  return tuple(named)
