"""Console output of a stage in training: compilation, evaluations, progress bar."""

from collections.abc import Mapping, Sequence
import math

from smskd_jax.engine.plan import StagePlan
from smskd_jax.engine.summary import RunEstimate
from smskd_jax.runtime import clock, console

ESTIMATE_SECONDS = (
  60.0  # of training without an evaluation, after which the run's estimate does not wait for one
)


class StageProgress:
  """Prints the events of the training loop. Rates and remaining times exclude compilation."""

  def __init__(
    self, plan: StagePlan, seeds: int, timer: clock.Clock, estimate: RunEstimate, overhead: float = 0.0
  ):
    """Prints nothing.

    Args:
      plan: of the stage, with any of its seeds.
      seeds: number of seeds that are trained at once; lines show their mean.
      timer: measures the phases of the loop.
      estimate: remaining time of the run.
      overhead: seconds of the stage before the loop.
    """
    self._plan, self._seeds, self._timer, self._estimate = plan, seeds, timer, estimate
    self._overhead = overhead
    self._name = plan.name if seeds == 1 else f"{plan.name} (mean of {seeds} seeds)"
    self._bar: console.ProgressBar | None = None
    self._compiling = False
    self._steps, self._began, self._evaluating = 0, 0.0, 0.0  # since the last evaluation; see `_restart`

  def compiling(self) -> None:
    """Prints one line per stage."""
    if not self._compiling:
      console.log(f"{self._name}  compiling")
      self._compiling = True

  def trained(self, step: int, steps: int, *, compiled: bool) -> None:
    """Advances the bar of the epoch."""
    if compiled and not self._steps:
      self._restart()  # the first call also waited for the first images
    elif not compiled:
      self._steps += steps
    self._move_bar(step, steps)
    seconds = self._timer.seconds_in(clock.TRAIN) - self._began
    if self._steps and seconds > ESTIMATE_SECONDS:
      self._show_estimate(step, seconds / self._steps, None)

  def evaluated(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
    """Prints a line with the mean metrics of the seeds."""
    means = {name: math.fsum(line[name] for line in lines) / len(lines) for name in lines[0]}
    rate = left = None
    if self._steps:
      seconds = (self._timer.seconds_in(clock.TRAIN) - self._began) / self._steps
      evaluating = self._timer.seconds_in(clock.EVALUATE) - self._evaluating
      rate = self._plan.loop_config.batch_size * self._seeds / seconds
      left = self._estimate.stage_seconds(self._plan, step, seconds, evaluating)
    console.log(evaluation_line(self._name, self._plan.loop_config.epochs, means, rate, left))
    if self._steps:
      self._show_estimate(step, seconds, evaluating)
    self._restart()

  def close(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _restart(self) -> None:
    """Restarts the measurement of steps; steps that compile are not counted."""
    self._steps = 0
    self._began, self._evaluating = (
      self._timer.seconds_in(clock.TRAIN),
      self._timer.seconds_in(clock.EVALUATE),
    )

  def _show_estimate(self, step: int, seconds: float, evaluating: float | None) -> None:
    overhead = self._overhead + self._timer.seconds_in(clock.COMPILE)
    self._estimate.print_once(self._plan, step, seconds, evaluating, overhead, self._seeds)

  def _move_bar(self, step: int, steps: int) -> None:
    epoch, within = divmod(step - steps, self._plan.loop_config.steps_per_epoch)
    size = self._plan.loop_config.batch_size * self._seeds
    if self._bar is None:
      text = f"{self._name}  {_epoch(epoch + 1, self._plan.loop_config.epochs)}"
      self._bar = console.ProgressBar(text, self._plan.loop_config.steps_per_epoch * size)
      self._bar.update(within * size)  # steps of the epoch before a restored checkpoint
    self._bar.update(steps * size)
    if step % self._plan.loop_config.steps_per_epoch == 0:
      self.close()


def evaluation_line(
  name: str, epochs: int, metrics: Mapping[str, float], rate: float | None = None, left: float | None = None
) -> str:
  """Metrics of an evaluation in one line.

  Args:
    name: of the stage.
    epochs: of the stage.
    metrics: as in metrics.jsonl; training metrics are means over at most the last `log_every_steps` steps.
    rate: images per second; None: not measured.
    left: remaining seconds of the stage; None: not measured.
  """
  parts = [name, _epoch(round(metrics["epoch"]), epochs)]
  if "train/loss" in metrics:
    parts.append(f"loss {metrics['train/loss']:#.4g}")
  for split in ("train", "validation", "test"):
    if f"{split}/accuracy" in metrics:
      parts.append(f"{split} {100 * metrics[f'{split}/accuracy']:.1f} %")
  if rate is not None:
    parts.append(f"{rate:,.0f} images/s")
  if left:
    parts.append(f"{console.format_clock(left)} left")
  return "  ".join(parts)


def _epoch(epoch: int, epochs: int) -> str:
  return f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
