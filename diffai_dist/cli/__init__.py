"""The verbs. A command parses, calls one function of the library, prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from diffai_dist.cli import compare, stores, sweep, tools
from diffai_dist.cli.options import SETTINGS, Verb
from diffai_dist.console import print_chunks
from diffai_dist.errors import UsageError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="diffai-dist", prog_name="diffai-dist")
def commands() -> None:
    """Compare ML model checkpoints: exact numbers, local or in a bucket, on one machine or a dask cluster.

    \b
    diffai-dist demo                                   try it on small networks
    diffai-dist compare old.safetensors new.safetensors
    diffai-dist compare s3://bucket/step-1000 s3://bucket/step-2000 --sort-by-change-magnitude
    diffai-dist sweep 's3://bucket/run7/step-*' --store s3://bucket/reports
    """


_VERBS: dict[str, Callable[..., Any]] = {
    "compare": compare.compare,
    "sweep": sweep.sweep,
    "plan": sweep.plan,
    "resume": sweep.resume,
    "status": stores.status,
    "report": stores.report,
    "query": stores.query,
    "gc": stores.gc,
    "inspect": tools.inspect,
    "analyses": tools.analyses,
    "explain": tools.explain,
    "demo": tools.demo,
}
for _name, _verb in _VERBS.items():
    commands.command(_name, Verb, context_settings=SETTINGS)(_verb)
commands.add_command(tools.config)
commands.commands["explain"].ignore_unknown_options = True  # what it explains may be named as a flag

_compare = commands.commands["compare"]
diffai = Verb(
    "diffai", {**_CONTEXT, **SETTINGS}, callback=_compare.callback, params=list(_compare.params), help=_compare.help
)
click.version_option(package_name="diffai-dist", prog_name="diffai")(diffai)


@commands.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell: eval "$(diffai-dist completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    for command, name in ((commands, "diffai-dist"), (diffai, "diffai")):
        variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
        print_chunks([kind(command, {}, name, variable).source() + "\n"])
    return 0
