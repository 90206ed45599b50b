"""Several runs on one page: which of them differ by their seed alone, and what these say together."""

from collections.abc import Sequence
import json

from smskd_jax.analysis import records, statistics
from smskd_jax.analysis.page import Table
from smskd_jax.analysis.records import Record

ONE_SEED = "one seed only"  # in the title of everything that stands on a single one


def groups(of: Sequence[Record]) -> list[list[Record]]:
  """The runs whose configs are the same but for their seeds; of one seed the first counts."""
  found: dict[str, dict[int, Record]] = {}
  for record in of:
    config = {name: value for name, value in record.run.config.items() if name != "seed"}
    found.setdefault(json.dumps(config, sort_keys=True), {}).setdefault(record.seed, record)
  return [list(seeds.values()) for seeds in found.values()]


def single(record: Record, of: Sequence[Record]) -> bool:
  """Whether no other run has the record's config and another seed."""
  config = lambda one: dict(one.run.config) | {"seed": 0}
  return not any(config(other) == config(record) and other.seed != record.seed for other in of)


def overview(of: Sequence[Record]) -> Table:
  """Each run's networks as they ended."""
  rows = [
    [record.title, network, own[-1]["name"], f"{100 * own[-1]['metrics']['last']['test/accuracy']:.2f} %"]
    for record in of
    for network, own in records.by_network(record.stages).items()
  ]
  return Table(
    ["run", "network", "last stage", "test"], rows, "Test accuracy of every network at its last epoch."
  )


def over_seeds(of: Sequence[Record]) -> Table | None:
  """Mean and spread of the runs that differ by their seeds alone; None where no two do."""
  rows = []
  for group in groups(of):
    if len(group) > 1:
      names = ", ".join(one.run.folder.absolute().name for one in group)
      for network in records.by_network(group[0].stages):
        last = [records.by_network(one.stages)[network][-1]["metrics"]["last"] for one in group]
        found = statistics.summary([100 * metrics["test/accuracy"] for metrics in last])
        rows.append([names, network, str(found.n), found.text()])
  if not rows:
    return None
  caption = (
    "Runs of one config and several seeds: test accuracy in percent, mean ± standard deviation over n seeds."
  )
  return Table(["runs", "network", "n", "test"], rows, caption)
