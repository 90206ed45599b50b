"""Tests of launch/: each script with stand-ins for the programs that it calls, which record their arguments."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sysconfig
import time

import pytest

import runs

LAUNCH = runs.ROOT / "launch"
SCRIPTS = (
  ".ci/run",
  "launch/local.sh",
  "launch/slurm.sbatch",
  "launch/slurm_study.sbatch",
  "launch/tpu_pod.sh",
)
EXPERIMENT = ("--config=configs/smoke.py", "--workdir=/mnt/shared/a run")


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
  shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
  assert shellcheck, "pip install -e '.[test]' has not been run here"
  done = subprocess.run([shellcheck, runs.ROOT / script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.fixture
def stand_in(tmp_path):
  """Creates a program that appends its arguments, one call a line, to calls.txt, and then runs some bash."""
  folder = tmp_path / "bin"
  folder.mkdir()

  def make(name, then="", at=None):
    path = (at or folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\ncd {tmp_path}\necho "{name} $*" >>calls.txt\n{then}\n')
    path.chmod(0o755)

  return make


def launch(tmp_path, script, *args, **environment):
  """(exit status, stdout, stderr, the calls of stand-ins)."""
  where = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"} | environment
  done = subprocess.run(
    [LAUNCH / script, *args], capture_output=True, text=True, env=where, cwd=tmp_path, timeout=60
  )
  calls = tmp_path / "calls.txt"
  return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines() if calls.exists() else []


GCLOUD = """
case "$*" in
  *describe*) [[ -f there ]] && cat there || exit 1 ;;
  *create*) echo READY >there ;;
  *delete*) rm there ;;
  *tail*) {follow} ;;
esac
"""
SLICE = ("pod", "us-west4-a", "v5litepod-16")
WHOLE = [
  "create",
  "scp",
  "ssh",
  "ssh",
  "ssh",
  "ssh",
  "scp",
]  # of a run from the slice's making to its results


def kinds(calls):
  """Subcommand of each call of gcloud, without queries of the state."""
  return [call.split()[4] for call in calls if "describe" not in call]


def test_a_pod_is_made_installed_started_on_all_followed_and_fetched(tmp_path, stand_in):
  stand_in("gcloud", GCLOUD.format(follow="echo the log"))
  status, out, err, calls = launch(tmp_path, "tpu_pod.sh", *SLICE, *EXPERIMENT, SPOT="1")
  assert status == 0, err
  assert kinds(calls) == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "scp"] and "the log" in out
  of = [call for call in calls if "describe" not in call]
  assert "--accelerator-type=v5litepod-16" in of[0] and "--spot" in of[0]
  assert all("--worker=all" in call for call in of[1:4]) and all("--worker=0" in call for call in of[4:])
  assert "--distributed=auto" in of[3] and r"--workdir=/mnt/shared/a\ run" in of[3]
  assert all("--zone=us-west4-a" in call for call in of)


def test_a_pod_that_is_there_is_used_and_one_that_is_gone_is_made_anew(tmp_path, stand_in):
  (tmp_path / "there").write_text("READY")
  follow = "[[ -f preempted ]] && exit 0; touch preempted; echo PREEMPTED >there; exit 1"
  stand_in("gcloud", GCLOUD.format(follow=follow))
  status, _, err, calls = launch(tmp_path, "tpu_pod.sh", *SLICE, *EXPERIMENT)
  assert status == 0 and "making it anew" in err
  assert kinds(calls) == ["scp", "ssh", "ssh", "ssh", "delete", *WHOLE]


def test_a_run_that_was_stopped_by_sigterm_on_a_pod_goes_on(tmp_path, stand_in):
  stand_in("gcloud", GCLOUD.format(follow="[[ -f stopped ]] && exit 0; touch stopped; exit 143"))
  status, _, err, calls = launch(tmp_path, "tpu_pod.sh", *SLICE, *EXPERIMENT)
  assert status == 0 and "has saved; going on" in err
  assert kinds(calls) == ["create", "scp", "ssh", "ssh", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "scp"]


def test_a_run_that_fails_on_a_pod_is_told_and_not_begun_again(tmp_path, stand_in):
  stand_in("gcloud", GCLOUD.format(follow="exit 2"))
  status, _, err, calls = launch(tmp_path, "tpu_pod.sh", *SLICE, *EXPERIMENT)
  assert status == 2 and "the run ended with status 2" in err
  assert kinds(calls) == ["create", "scp", "ssh", "ssh", "ssh"]


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path, stand_in):
  stand_in("gcloud")
  status, out, _, calls = launch(tmp_path, "tpu_pod.sh", "--dry_run", *SLICE, *EXPERIMENT)
  assert status == 0 and not calls
  commands = [line.split() for line in out.splitlines()]
  assert [of[4] for of in commands if of[0] == "gcloud"] == WHOLE


@pytest.mark.parametrize(
  "args, message",
  [
    ((), "usage:"),
    ((*SLICE, "--config=a"), "error: --workdir=DIR: missing"),
    (("--dry_run", *SLICE), "usage:"),
  ],
)
def test_what_a_pod_needs_is_asked_for(tmp_path, args, message):
  status, _, err, _ = launch(tmp_path, "tpu_pod.sh", *args)
  assert status == 2 and message in err


def submit(tmp_path, stand_in, then, *command):
  """The calls that a job makes; `then` is what sbatch does with a script: it runs it with variables of the job."""
  for name in ("python", "srun"):
    stand_in(name)
  stand_in("sbatch", f"export SLURM_SUBMIT_DIR=$PWD; {then}")
  (tmp_path / ".venv" / "bin").mkdir(parents=True)
  (tmp_path / ".venv" / "bin" / "activate").write_text("")
  where = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
  subprocess.run(["sbatch", *command, *EXPERIMENT], check=True, env=where, cwd=tmp_path)
  _, *calls = (tmp_path / "calls.txt").read_text().splitlines()
  return calls


@pytest.mark.parametrize(
  "tasks, called", [("1", "python -u -m smskd_jax.main"), ("8", "srun --kill-on-bad-exit=1")]
)
def test_a_slurm_job_is_one_process_or_one_for_each_task(tmp_path, stand_in, tasks, called):
  then = f'SLURM_NTASKS={tasks} bash "$@"'
  (call,) = submit(tmp_path, stand_in, then, LAUNCH / "slurm.sbatch")
  assert call.startswith(called) and call.endswith("--workdir=/mnt/shared/a run")
  assert ("--distributed=auto" in call) == (tasks == "8")


def test_a_slurm_array_runs_a_unit_of_a_study_in_each_task(tmp_path, stand_in):
  then = 'for i in 0 1 2; do SLURM_ARRAY_TASK_ID=$i bash "${@:2}"; done'
  calls = submit(tmp_path, stand_in, then, "--array=0-2", LAUNCH / "slurm_study.sbatch")
  assert calls == [f"python -u -m smskd_jax.study --unit={i} {' '.join(EXPERIMENT)}" for i in range(3)]


def test_on_this_machine_one_process_is_the_program_itself(tmp_path, stand_in):
  stand_in("python")
  assert launch(tmp_path, "local.sh", *EXPERIMENT)[3] == [f"python -m smskd_jax.main {' '.join(EXPERIMENT)}"]
  (tmp_path / "calls.txt").unlink()
  assert launch(tmp_path, "local.sh")[3] == [
    "python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart"
  ]


PYTHON = """
[[ $1 == -c ]] && echo 1234 && exit
[[ $* == *,1\\ --config* ]] && exit {second}
trap 'exit 7' TERM
{first}
"""


def test_on_this_machine_several_processes_know_of_each_other(tmp_path, stand_in):
  stand_in("python", PYTHON.format(first="exit 0", second=0))
  status, _, _, calls = launch(tmp_path, "local.sh", "2", *EXPERIMENT)
  joined = sorted(call for call in calls if "distributed" in call)
  assert status == 0 and [call.split()[3] for call in joined] == [
    f"--distributed=localhost:1234,2,{i}" for i in (0, 1)
  ]


def test_on_this_machine_one_that_fails_is_the_status_of_all(tmp_path, stand_in):
  stand_in("python", PYTHON.format(first="exit 0", second=3))
  assert launch(tmp_path, "local.sh", "2", *EXPERIMENT)[0] == 3


def test_gpus_of_this_machine_are_dealt_out(tmp_path, stand_in):
  stand_in("nvidia-smi", "seq 4")
  stand_in("python", "[[ $1 == -c ]] && echo 1234 && exit\necho $JAX_LOCAL_DEVICE_IDS >>dealt.txt")
  assert launch(tmp_path, "local.sh", "2", *EXPERIMENT)[0] == 0
  assert sorted((tmp_path / "dealt.txt").read_text().split()) == ["0,1", "2,3"]


@pytest.mark.parametrize(
  "signum, of_process, expected",
  [(signal.SIGTERM, 7, 7), (signal.SIGTERM, 143, 143), (signal.SIGINT, 143, 130)],
)
def test_signals_reach_the_processes_of_this_machine(tmp_path, stand_in, signum, of_process, expected):
  loops = "touch started; while true; do sleep 0.1; done"
  stand_in("python", PYTHON.format(first=loops, second=0).replace("exit 7", f"exit {of_process}"))
  where = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
  process = subprocess.Popen([LAUNCH / "local.sh", "2", *EXPERIMENT], env=where, cwd=tmp_path)
  until = time.monotonic() + 20
  while not Path(tmp_path / "started").exists() and time.monotonic() < until:
    time.sleep(0.05)
  process.send_signal(signum)
  assert process.wait(timeout=20) == expected


def test_the_second_signal_to_the_processes_of_this_machine_does_not_wait(tmp_path, stand_in):
  loops = "trap '' TERM; touch started; while true; do sleep 0.1; done"
  stand_in("python", PYTHON.format(first=loops, second=0))
  where = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
  process = subprocess.Popen([LAUNCH / "local.sh", "2", *EXPERIMENT], env=where, cwd=tmp_path)
  until = time.monotonic() + 20
  while not Path(tmp_path / "started").exists() and time.monotonic() < until:
    time.sleep(0.05)
  for _ in range(2):
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
  assert process.wait(timeout=20) == 130
