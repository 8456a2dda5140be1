"""The two programs: `diffai-dist VERB ...` and `diffai BASELINE CANDIDATE ...`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `diffai-dist`."""
    from diffai_dist.cli import commands
    from diffai_dist.console import run

    sys.exit(run(commands, "diffai-dist"))


def diffai() -> None:
    """Run `diffai`, which is `diffai-dist compare`."""
    from diffai_dist.cli import diffai
    from diffai_dist.console import run

    sys.exit(run(diffai, "diffai"))


if __name__ == "__main__":
    main()
