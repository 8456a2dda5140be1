"""The settings of a sweep: names, types, defaults. The text under a setting is its description in the JSON Schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from diffai_dist.records import Severity

PairChoice = Literal["consecutive", "vs-first", "vs-last", "vs-baseline", "all"]
OutputFormat = Literal["text", "json", "yaml", "markdown", "junit"]
FailOn = Literal[Severity, "changed", "missing", "nan", "unreadable", "never"]

# What pydantic reads of a field's metadata.
_POSITIVE: Mapping[str, int] = MappingProxyType({"ge": 1})
_FINITE: Mapping[str, float] = MappingProxyType({"ge": 0, "allow_inf_nan": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Which tensors take part."""

    include: tuple[str, ...] = ()
    """Globs: only tensors whose whole name matches one. Default: all tensors."""
    exclude: tuple[str, ...] = ()
    """Globs: no tensors whose whole name matches one."""
    ignore_keys_regex: str | None = None
    """No tensors in whose name this regular expression is found."""
    map: str | None = None
    """File of a map: which tensors are called otherwise in other checkpoints, which are fused."""
    raw: bool = False
    """Compare quantised weights as the codes and scales that are stored, not as the values that these stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What must be so in every pair; what is not is a finding that names the tensor."""

    frozen: tuple[str, ...] = ()
    """Globs: tensors whose whole name matches one have the bits of the baseline."""
    changed: tuple[str, ...] = ()
    """Globs: tensors whose whole name matches one do not."""
    cast: str | None = None
    """A float dtype: every float tensor is the baseline's, correctly rounded to it, bit for bit; all others are the
    same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How to reach object stores. Credentials come from the environment, the profile or the role of each machine."""

    endpoint_url: str | None = None
    """S3-compatible server to use in place of AWS, as https://host:port."""
    anon: bool = False
    """Read public buckets without credentials."""
    profile: str | None = None
    """Profile of the AWS configuration files to take credentials from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Workers as SLURM jobs, through dask-jobqueue."""

    jobs: int = field(default=1, metadata=_POSITIVE)
    """How many jobs."""
    config: str | None = None
    """File of dask-jobqueue that says what a job is: queue, account, cores, memory, walltime, under `jobqueue: slurm:`.
    Default: that of the site, ~/.config/dask/jobqueue.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files with which this client and the scheduler prove to each other who they are."""

    ca_file: str
    """Certificate of the authority that signed the others."""
    cert_file: str
    """Certificate of this client."""
    key_file: str
    """Its private key: the path of the file, which stays on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where it runs: without workers, scheduler and slurm in threads of this process."""

    workers: int | None = field(default=None, metadata=_POSITIVE)
    """Start that many worker processes on this machine."""
    scheduler: str | None = None
    """Join a running dask scheduler: tcp://host:port, tls://host:port, a scheduler file, or `env` for
    DASK_SCHEDULER_ADDRESS."""
    threads: int | None = field(default=None, metadata=_POSITIVE)
    """Threads per process. Default: one per processor in this process, one in a worker."""
    memory_limit: str | None = None
    """Memory of this process, or of each worker started here, as 8GB. Default: what the machine has."""
    unit_size: str | None = None
    """Bytes that one task reads, as 256MB; changes no result. Default: by memory and threads."""
    slurm: Slurm | None = None
    """Start workers as SLURM jobs."""
    tls: Tls | None = None
    """Certificates for a tls:// scheduler. Default: dask's own configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What becomes of the result, beside the store."""

    format: OutputFormat = "text"
    """Format of the result."""
    file: str | None = None
    """File or URL to write the result to. Default: standard output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """A sweep of diffai-dist: which checkpoints, which pairs of them, where it runs, where results go.

    Paths are relative to the folder of the file.
    """

    # JSON as pydantic reads it: a list becomes a tuple, a whole number a number, and nothing else is converted.
    # What this says holds for the sections, too.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }

    MADE_OF: ClassVar[str] = "a configuration is made of lines such as `checkpoints: PATH`"

    name: str | None = None
    """Shown in the first lines of the result."""
    checkpoints: str | tuple[str, ...]
    """One or several of: a path or URL, a glob, a template such as s3://bucket/run/step-{step:08d} or
    {date:%Y-%m-%d}, @FILE for a list in a file, - for a list on standard input."""
    since: int | str | None = None
    """First step or date: a number, 2026-11-01, 7d, 12h, yesterday, today (UTC). Default: no limit."""
    until: int | str | None = None
    """Last step or date, written like `since`. Default: no limit."""
    every: int | None = field(default=None, metadata=_POSITIVE)
    """Only steps that are multiples of this. Default: all."""
    latest: int | None = field(default=None, metadata=_POSITIVE)
    """Only that many, the last ones that all other limits leave. Default: all."""
    pairs: PairChoice | tuple[tuple[str, str], ...] = "consecutive"
    """What is compared with what; or a list of [baseline, candidate], each the name of a member, a path that begins
    with ./, ../, ~ or /, or a URL."""
    baseline: str | None = None
    """Path or URL of the checkpoint with which `pairs: vs-baseline` compares all others, and from which `pairs: all`
    measures; near the others it keeps more digits of their distances."""
    elementwise: bool = False
    """With `pairs: all`: measure each pair element by element as well."""
    select: Select = field(default_factory=Select)
    """Which tensors take part."""
    epsilon: float | None = field(default=None, metadata=_FINITE)
    """Differences of at most this count as none, and are said. Default: bits decide."""
    analyses: tuple[str, ...] = ()
    """Names of analyses, as layer_impact; all stands for those that cost no second reading."""
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Limits of analyses that differ from their defaults, by name of the analysis."""
    expect: Expect = field(default_factory=Expect)
    """What must be so in every pair; what is not is a finding that names the tensor."""
    fail_on: FailOn | tuple[FailOn, ...] = ()
    """What makes the exit code 1: a finding at least so severe that is not waived; any tensor that changed; one that is
    missing in a candidate; a NaN in one; what could not be read. Default: nothing, or what breaks the policy."""
    policy: str | None = None
    """File of rules and waivers. Without a severity in fail_on, a rule that is broken at medium or above makes 1."""
    store: str | None = None
    """Folder or URL in which runs are kept as JSON and Parquet. Default: none are kept."""
    storage: Storage = field(default_factory=Storage)
    """How to reach object stores."""
    cluster: Cluster = field(default_factory=Cluster)
    """Where it runs."""
    output: Output = field(default_factory=Output)
    """What becomes of the result, beside the store."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The checkpoints as a tuple, also where the file names one."""
        return (self.checkpoints,) if isinstance(self.checkpoints, str) else self.checkpoints

    @property
    def conditions(self) -> tuple[FailOn, ...]:
        """What makes the exit code 1, likewise."""
        return (self.fail_on,) if isinstance(self.fail_on, str) else self.fail_on


@functools.cache
def setting_paths(kind: Any = SweepConfig) -> tuple[tuple[str, ...], ...]:
    """Every setting of a file of that kind as the names that lead to it, a section before what it holds."""
    return tuple(_paths(kind))


def _paths(kind: Any) -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(kind)
    for name in (item.name for item in fields(kind)):
        yield (name,)
        for section in filter(is_dataclass, (hints[name], *get_args(hints[name]))):
            yield from ((name, *rest) for rest in _paths(section))
