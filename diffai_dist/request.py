"""From a configuration to what the main path takes: a group of checkpoints, and the settings of the run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from diffai_dist import storage
from diffai_dist.analyses import ANALYSES, SERIES
from diffai_dist.choosing import Chosen, Window, choose, make_pairs, member_names
from diffai_dist.cluster import Place, Slurm, Tls, memory_bytes
from diffai_dist.comparison import Selection
from diffai_dist.config import SweepConfig
from diffai_dist.errors import UsageError
from diffai_dist.opening import Group
from diffai_dist.partials import DETAILS
from diffai_dist.records import Member
from diffai_dist.run import Settings
from diffai_dist.storage import Profile


def check_analyses(names: tuple[str, ...]) -> None:
    """Refuse a name that no analysis has."""
    known = known_analyses()
    for name in names:
        if name not in known:
            raise UsageError(f"unknown analysis {name!r}; there are {', '.join(known)}")


def known_analyses() -> tuple[str, ...]:
    """Names of the analyses that can be asked for."""
    return (*ANALYSES, *SERIES)


def partials_of(names: Iterable[str]) -> set[str]:
    """What the analyses need beside moments and shifts: "gram", and details."""
    kinds = {**ANALYSES, **SERIES}
    return {partial for name in names for partial in kinds[name].partials}


def details_of(names: Iterable[str]) -> tuple[str, ...]:
    """The details among them, in their order."""
    needed = partials_of(names)
    return tuple(detail for detail in DETAILS if detail in needed)


def settings_of(config: SweepConfig, verbose: bool = False) -> Settings:
    """Selection, analyses, storage and place of a configuration."""
    check_analyses(config.analyses)
    by_pair = [name for name in config.analyses if name in ANALYSES]
    if config.pairs == "all" and not config.elementwise:
        if by_pair:
            raise UsageError(f"{by_pair[0]} needs pairs that are measured element by element: add --elementwise")
        if config.epsilon is not None:
            raise UsageError("--epsilon needs pairs that are measured element by element: add --elementwise")
    cluster, select = config.cluster, config.select
    tls = Tls(cluster.tls.ca_file, cluster.tls.cert_file, cluster.tls.key_file) if cluster.tls else None
    slurm = Slurm(cluster.slurm.jobs, cluster.slurm.config) if cluster.slurm else None
    return Settings(
        Selection(select.include, select.exclude, select.ignore_keys_regex),
        config.epsilon,
        config.analyses,
        {},
        profile_of(config),
        Place(cluster.workers, cluster.scheduler, cluster.threads, cluster.memory_limit, verbose, tls, slurm),
        memory_bytes(cluster.unit_size, "--unit-size"),
    )


def profile_of(config: SweepConfig) -> Profile:
    """How the configuration reaches storage."""
    return Profile(config.storage.endpoint_url, config.storage.anon, config.storage.profile)


def _check_apart(config: SweepConfig) -> None:
    """Refuse a baseline that is none of the checkpoints where it would be taken for the first step of their series."""
    reason = "--pairs all measures from it" if config.pairs == "all" else None
    if "convergence_analysis" in config.analyses:
        reason = "--convergence-analysis follows one training"
    if reason:
        raise UsageError(f"the baseline {config.baseline} is none of the checkpoints, and {reason}: choose one of them")


def group_of(config: SweepConfig, now: datetime) -> Group:
    """The checkpoints that the configuration chooses, in order, and their pairs. Lists storage; opens nothing."""
    profile = profile_of(config)
    window = Window(config.since, config.until, config.every, config.latest)
    chosen = list(choose(config.patterns, window, profile, now))
    baseline = None
    if config.baseline is not None:
        url = storage.check_url(config.baseline)
        if url not in [one.url for one in chosen]:
            _check_apart(config)
            chosen.insert(0, Chosen(url, None, None))
        baseline = [one.url for one in chosen].index(url)
    urls = tuple(one.url for one in chosen)
    names = member_names(urls)
    pairs = make_pairs(config.pairs, names, urls, baseline)
    mode = config.pairs if isinstance(config.pairs, str) else "list"
    anchor = (baseline or 0) if mode == "all" or "gram" in partials_of(config.analyses) else None
    return Group(
        tuple(
            Member(name, storage.redact(one.url), one.step, one.date.isoformat() if one.date else None)
            for name, one in zip(names, chosen, strict=True)
        ),
        urls,
        pairs,
        mode,
        config.name,
        anchor,
        mode != "all" or config.elementwise,
        details_of(config.analyses),
    )
