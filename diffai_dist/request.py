"""From a configuration to what the main path takes: a group of checkpoints, and the settings of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime

from diffai_dist import storage
from diffai_dist.analyses import ANALYSES, EVERY
from diffai_dist.analyses.expectations import Expectations, float_dtype
from diffai_dist.choosing import Chosen, Window, choose, make_pairs, member_names
from diffai_dist.cluster import Place, Slurm, Tls, memory_bytes
from diffai_dist.comparison import Selection
from diffai_dist.config import SweepConfig, TensorMap, checked_thresholds, load_map
from diffai_dist.errors import UsageError
from diffai_dist.matching import Matching
from diffai_dist.opening import Group
from diffai_dist.partials import DETAILS
from diffai_dist.records import Member
from diffai_dist.run import Settings
from diffai_dist.storage import Profile

ALL = "all"  # in place of a name: all analyses that cost no second reading
TWICE = ("similarity_matrix",)  # of two checkpoints: the layers of each are compared, from a reading of their own


def check_analyses(names: Iterable[str]) -> None:
    """Refuse a name that no analysis has."""
    known = (*EVERY, ALL)
    for name in names:
        if name not in known:
            raise UsageError(f"unknown analysis {name!r}; there are {', '.join(known)}")


def analyses_of(names: Sequence[str], elementwise: bool = True, series: bool = True) -> tuple[str, ...]:
    """The analyses that are asked for, in the order of the registries.

    `all` leaves out what needs elements where pairs are not measured so, and of two checkpoints that are no series what
    would read them twice. Raises UsageError for a name that no analysis has.
    """
    check_analyses(names)
    every = (name for name, kind in EVERY.items() if kind.in_all and (elementwise or name not in ANALYSES))
    asked = {*names, *((name for name in every if series or name not in TWICE) if ALL in names else ())}
    return tuple(name for name in EVERY if name in asked)


def left_out(config: SweepConfig) -> tuple[str, ...]:
    """The analyses of pairs that `all` would ask for, were the pairs measured element by element."""
    return tuple(name for name in analyses_of(config.analyses) if name not in _analyses(config))


def _analyses(config: SweepConfig) -> tuple[str, ...]:
    return analyses_of(config.analyses, config.pairs != "all" or config.elementwise)


def partials_of(names: Iterable[str]) -> set[str]:
    """What the analyses need beside moments and shifts: "gram", and details."""
    return {partial for name in names for partial in EVERY[name].partials}


def details_of(names: Iterable[str], expect: Expectations) -> tuple[str, ...]:
    """The details among them, and what proves what is expected, in their order."""
    needed = partials_of(names) | set(expect.partials)
    return tuple(detail for detail in DETAILS if detail in needed)


def expectations(frozen: Sequence[str] = (), changed: Sequence[str] = (), cast: str | None = None) -> Expectations:
    """What is expected of every pair; UsageError for a cast to what is no float."""
    return Expectations(tuple(frozen), tuple(changed), float_dtype(cast) if cast else None)


def matching_of(analyses: Iterable[str], path: str | None) -> Matching:
    """How names are matched: as the map in a file says, and from names and shapes if the analysis of that is asked for.

    Raises UsageError for a map that cannot be used.
    """
    found = load_map(path) if path else TensorMap()
    return Matching("tensor_matching" in analyses, found.rename, found.fused)


def settings_of(config: SweepConfig, verbose: bool = False) -> Settings:
    """Selection, analyses, expectations, storage and place of a configuration."""
    analyses, expect = _analyses(config), expectations(**asdict(config.expect))
    if config.pairs == "all" and not config.elementwise:
        options = {"--epsilon": config.epsilon is not None, "an expectation": bool(expect)}
        needing = [name for name in analyses if name in ANALYSES] + [name for name, given in options.items() if given]
        if needing:
            raise UsageError(f"{needing[0]} needs pairs that are measured element by element: add --elementwise")
    cluster, select = config.cluster, config.select
    tls = Tls(cluster.tls.ca_file, cluster.tls.cert_file, cluster.tls.key_file) if cluster.tls else None
    slurm = Slurm(cluster.slurm.jobs, cluster.slurm.config) if cluster.slurm else None
    return Settings(
        Selection(select.include, select.exclude, select.ignore_keys_regex),
        config.epsilon,
        analyses,
        checked_thresholds(config.thresholds),
        profile_of(config),
        Place(cluster.workers, cluster.scheduler, cluster.threads, cluster.memory_limit, verbose, tls, slurm),
        memory_bytes(cluster.unit_size, "--unit-size"),
        expect=expect,
        matching=matching_of(analyses, select.map),
        raw=select.raw,
    )


def profile_of(config: SweepConfig) -> Profile:
    """How the configuration reaches storage."""
    return Profile(config.storage.endpoint_url, config.storage.anon, config.storage.profile)


def _check_apart(config: SweepConfig) -> None:
    """Refuse a baseline that is none of the checkpoints where it would be taken for the first step of their series."""
    reason = "--pairs all measures from it" if config.pairs == "all" else None
    if "convergence_analysis" in _analyses(config):
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
    analyses = _analyses(config)
    anchor = (baseline or 0) if mode == "all" or "gram" in partials_of(analyses) else None
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
        details_of(analyses, expectations(**asdict(config.expect))),
        "config" in partials_of(analyses),
        config.select.raw,
    )
