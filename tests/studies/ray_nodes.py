"""Starts a Ray cluster on this machine, two of its three nodes with one CPU, until standard input is closed."""

import json
import os
from pathlib import Path
import shutil
import sys
import tempfile

from ray.cluster_utils import Cluster

if __name__ == "__main__":
  # pytest's own paths are too long for the names of sockets
  folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
  os.environ["RAY_TMPDIR"] = folder
  # Ray writes the newest cluster's address there and does not create the folder
  (Path(folder) / "ray").mkdir()
  cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
  )
  try:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
  finally:
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
