"""Lists the methods, or explains some.

python -m smskd_jax.losses            all methods and plug-ins, a line each
python -m smskd_jax.losses NAME ...   some of them: paper, formula, hyper-parameters, differences
python -m smskd_jax.losses --markdown the page docs/methods.md
"""

from collections.abc import Sequence
import sys

from smskd_jax.errors import UserError, print_error, suggestion
from smskd_jax.losses import METHODS, PLUGINS, docs


def main(argv: Sequence[str]) -> int:
  """Prints a table, a page or some methods; returns the exit status."""
  known = [*METHODS, *PLUGINS]
  if not argv:
    print(docs.format_table())
  elif {"-h", "--help"} & set(argv):
    print(__doc__)
  elif argv == ["--markdown"]:
    print(docs.format_markdown(), end="")
  else:
    for name in argv:
      if name not in known:
        hint = suggestion(name, known) or "; without a name, all are listed"
        return print_error(UserError(f"there is no method {name!a}{hint}"))
    print("\n\n".join(docs.format_method(docs.describe(name)) for name in argv))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
