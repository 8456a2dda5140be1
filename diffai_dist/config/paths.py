"""Where relative paths and `~` lead: what a file names, it names as seen from its own folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from diffai_dist.choosing import literal
from diffai_dist.config.model import Cluster, SweepConfig, Tls


def located(config: SweepConfig, folder: str, environ: Mapping[str, str]) -> SweepConfig:
    """The configuration with absolute paths in place of relative ones and of `~`. URLs and names of members stay."""
    path = functools.partial(_absolute, folder=folder, home=environ.get("HOME"))
    pattern = functools.partial(_pattern, folder=folder, home=environ.get("HOME"))
    pairs, baseline, store, file = config.pairs, config.baseline, config.store, config.output.file
    return replace(
        config,
        checkpoints=tuple(map(pattern, config.patterns)),
        pairs=pairs if isinstance(pairs, str) else tuple((_member(a, path), _member(b, path)) for a, b in pairs),
        baseline=baseline and path(baseline),
        select=replace(config.select, map=config.select.map and path(config.select.map)),
        store=store and path(store),
        policy=config.policy and path(config.policy),
        cluster=_cluster(config.cluster, path),
        output=replace(config.output, file=file and path(file)),
    )


def _cluster(cluster: Cluster, path: Callable[[str], str]) -> Cluster:
    scheduler, slurm, tls = cluster.scheduler, cluster.slurm, cluster.tls
    return replace(
        cluster,
        scheduler=scheduler if scheduler == "env" else scheduler and path(scheduler),
        slurm=slurm and replace(slurm, config=slurm.config and path(slurm.config)),
        tls=tls and Tls(ca_file=path(tls.ca_file), cert_file=path(tls.cert_file), key_file=path(tls.key_file)),
    )


def _pattern(text: str, folder: str, home: str | None) -> str:
    """A pattern of checkpoints, which are files, or `@` and a file, or `-` for standard input."""
    if text == "-":
        return text
    if text.startswith("@"):
        return f"@{_absolute(text[1:], folder, home)}"
    found = _absolute(text, literal(folder), home)  # a folder named run[1] is no pattern
    return f"{found}/" if text.endswith("/") and not found.endswith("/") else found  # folders only


def _member(text: str, path: Callable[[str], str]) -> str:
    """A path where it looks like one, else the name of a member such as step-000300."""
    return path(text) if text.startswith(("/", "./", "../", "~")) else text


def _absolute(text: str, folder: str, home: str | None) -> str:
    if not text or "://" in text:
        return text
    head, slash, rest = text.partition("/")
    if head.startswith("~"):
        head = home if head == "~" and home else os.path.expanduser(head)
    return os.path.abspath(os.path.join(folder, f"{head}{slash}{rest}"))
