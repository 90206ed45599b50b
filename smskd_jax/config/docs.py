"""docs/config.md, generated from the schema.

Run `python -m smskd_jax.config.docs > docs/config.md`.
"""

from collections.abc import Callable, Iterator, Mapping
import inspect

from smskd_jax.config import schema
from smskd_jax.config.fields import Field, Schema, allowed
from smskd_jax.config.merge import default_kwargs
from smskd_jax.config.study_schema import STUDY
from smskd_jax.data import mixing, views
from smskd_jax.training import optimizer, schedule

_INTRODUCTION = """# Config

Generated from `smskd_jax/config/schema.py` by `python -m smskd_jax.config.docs > docs/config.md`.

A config file is a Python file with a function `get_config` that returns `experiment(...)`, or `study(...)` for
`python -m smskd_jax.study`. The command line changes any field: `--config.seed=1`,
`--config.stages[1].reference.weight=0.3`, `--config.networks.student.model=vgg8`. `--dry_run` prints the resolved
config with every default. A wrong name, type or value ends the program with one line before training starts.
"""


def render() -> str:
  """Text of docs/config.md."""
  return "\n".join((_INTRODUCTION, *_sections())) + "\n"


def _sections() -> Iterator[str]:
  yield from _section("experiment(...)", schema.EXPERIMENT)
  yield from _section("network(model, ...)", schema.NETWORK)
  yield from _section("stage(network, ...)", schema.STAGE)
  yield from _section("method(name, ...)", schema.METHOD)
  yield from _section("plugin(name, ...)", schema.PLUGIN)
  yield from _section("study(...)", STUDY)
  yield from _options(
    "Optimizers", "`optimizer.name`, with the further fields of `optimizer`", optimizer.OPTIMIZERS
  )
  yield from _options(
    "Schedules", "`schedule.name`, with the further fields of `schedule`", schedule.SCHEDULES
  )
  yield from _options("Views", "parts of `views`, with their options in `augment`", views.VIEWS)
  yield from _options("Mixing", "`mix.name`, with the further fields of `mix`", mixing.MIXES)
  yield (
    "Methods and plug-ins with their hyper-parameters are in [methods.md](methods.md); sources of images in "
    "[data.md](data.md)."
  )


def _section(title: str, fields: Schema) -> Iterator[str]:
  yield f"## `{title}`\n"
  yield "| field | default | allowed | meaning |\n|---|---|---|---|"
  yield from _rows("", fields)
  yield ""


def _rows(prefix: str, fields: Schema) -> Iterator[str]:
  for name, field in fields.items():
    if isinstance(field, Field):
      yield f"| `{prefix}{name}` | `{field.default!r}` | {allowed(field)} | {field.description} |"
    else:
      yield from _rows(f"{prefix}{name}.", field)


def _options(title: str, place: str, factories: Mapping[str, Callable]) -> Iterator[str]:
  yield f"## {title}: {place}\n"
  yield "| name | options and defaults | meaning |\n|---|---|---|"
  for name, factory in factories.items():
    options = ", ".join(f"`{option}={value!r}`" for option, value in default_kwargs(factory).items())
    first_line = (inspect.getdoc(factory) or "").partition("\n")[0]
    yield f"| `{name}` | {options} | {first_line} |"
  yield ""


if __name__ == "__main__":
  print(render(), end="")
