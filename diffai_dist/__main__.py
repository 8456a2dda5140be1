"""The two programs: `diffai-dist VERB ...` and `diffai BASELINE CANDIDATE ...`."""

from __future__ import annotations

from typing import NoReturn

from diffai_dist import console


def main() -> NoReturn:
    """Run `diffai-dist`."""
    from diffai_dist.cli import commands

    console.main(commands, "diffai-dist")


def diffai() -> NoReturn:
    """Run `diffai`, which is `diffai-dist compare`."""
    from diffai_dist.cli import diffai

    console.main(diffai, "diffai")


if __name__ == "__main__":
    main()
