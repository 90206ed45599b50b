"""Values of config arguments that are lists joined by +."""

from typing import TypeVar

from smskd_jax.errors import UserError

T = TypeVar("T", int, float)


def split_names(text: str) -> list[str]:
  """Splits 'at+kd' into names; empty ones are dropped."""
  return [name for name in text.split("+") if name]


def parse_numbers(field: str, text: str, number_type: type[T]) -> list[T]:
  """Parses numbers that are joined by +, as '0.1+0.5'.

  Args:
    field: name of the config argument, for the message.
    text: its value.
    number_type: int or float.

  Raises:
    UserError: the text is something else.
  """
  try:
    return [number_type(number) for number in text.split("+")]
  except ValueError:
    kind = "whole numbers" if number_type is int else "numbers"
    raise UserError(f"config argument {field}: {text!r} are not {kind} joined by +") from None


def parse_seeds(text: str) -> tuple[int, ...]:
  """Parses the seeds of a study, as '0+1+2'.

  Raises:
    UserError: the text is something else.
  """
  return tuple(parse_numbers("seeds", text, int))
