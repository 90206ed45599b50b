"""Lists the methods, or explains one.

python -m smskd_jax.losses            all methods and plug-ins, a line each
python -m smskd_jax.losses NAME       one of them: paper, formula, hyper-parameters, differences
python -m smskd_jax.losses --markdown the page docs/methods.md
"""

from collections.abc import Sequence
import difflib
import sys

from smskd_jax.losses import METHODS, PLUGINS, catalog


def main(argv: Sequence[str]) -> int:
  """Prints what is asked for; returns the exit status."""
  if not argv:
    print(catalog.listing())
  elif argv[0] in ("-h", "--help"):
    print(__doc__)
  elif argv[0] == "--markdown":
    print(catalog.markdown(), end="")
  elif argv[0] in {*METHODS, *PLUGINS}:
    print(catalog.explanation(catalog.card(argv[0])))
  else:
    nearest = difflib.get_close_matches(argv[0], [*METHODS, *PLUGINS], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "; without a name, all are listed"
    print(f"error: there is no method {argv[0]!r}{hint}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
