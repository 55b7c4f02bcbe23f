"""Whether T5X can be imported here, and the one thing that has to be mended before.

T5X imports jestimator. The registry's jestimator 0.3.3 asks for `jax.experimental.pjit.PartitionSpec`, which JAX no
longer has; its source repository does not. `prepare` comes before every import of t5x in this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging

from flipped_core.errors import UserError

# What the tests were run with (docs/t5x.md); setup.py names the same.
COMMITS = {
    "t5x": "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
    "airio": "69897df7d9a427b947a9f7bb4164c7782b43e601",
    "jestimator": "326824a477feef6d92e6f44175000907a72899ca",
}
INSTALL = "pip install --no-deps -r requirements-t5x.txt (docs/t5x.md)"

log = logging.getLogger(__name__)


class T5XMissing(UserError, ImportError):
    """T5X, or a package that it needs, cannot be imported."""


def prepare() -> None:
    """Makes `import t5x` work, or says what is missing.

    Raises:
      T5XMissing: with the command that installs it.
    """
    try:
        if importlib.util.find_spec("t5x") is None:
            raise ModuleNotFoundError(name="t5x")
        _mend_jestimator()
        importlib.import_module("t5x.models")
    except ImportError as error:
        missing = error.name.partition(".")[0] if error.name else str(error)
        what = "T5X is not installed" if missing == "t5x" else f"T5X cannot be imported ({error})"
        raise T5XMissing(f"{what}: {INSTALL}") from error


def _mend_jestimator() -> None:
    """Puts the name that jestimator 0.3.3 imports where it looks for it, and says so."""
    try:
        importlib.import_module("jestimator.amos_helper")
    except ImportError as error:
        if "PartitionSpec" not in str(error):
            raise
        import jax
        import jax.experimental.pjit as pjit

        pjit.PartitionSpec = jax.sharding.PartitionSpec
        importlib.import_module("jestimator.amos_helper")
        log.warning(
            "jestimator asks for jax.experimental.pjit.PartitionSpec, which JAX %s no longer has: it was put there "
            "for this process; jestimator at commit %s asks for it no more",
            jax.__version__,
            COMMITS["jestimator"][:12],
        )
