"""From a URL to a Checkpoint: a weight file, an index of shards, or a folder that holds either."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import BadIndex, CheckpointError, UnknownFormat
from diffai_dist.formats.assembly import assemble, read_shards
from diffai_dist.formats.containers import read_file
from diffai_dist.formats.folder import choose, siblings
from diffai_dist.formats.index import MAX_INDEX_BYTES, Index, parse_index
from diffai_dist.formats.leftovers import leftovers_of
from diffai_dist.formats.model_config import read_config
from diffai_dist.formats.names import listed
from diffai_dist.formats.quantised import as_values
from diffai_dist.storage import Profile, check_url, entries, folders, join, kind, pin, read, redact
from diffai_dist.storage.urls import basename, parent

SNAPSHOTS = "snapshots"  # of a model in a Hugging Face cache, beside refs and blobs


def open_checkpoint(url: str, profile: Profile, with_config: bool = False, raw: bool = False) -> Checkpoint:
    """Read all headers of a checkpoint and none of its data; raises CheckpointError when nothing of it can be used.

    `with_config` asks for the config.json of a folder, too, with one request more where there is one. Quantised weights
    are the values that they stand for; with `raw`, the codes and scales that are stored.
    """
    url = check_url(url)
    format = _format(url, profile)
    checkpoint = FORMATS[format](url, profile, with_config)
    if checkpoint.format == "gguf" and not raw:
        from diffai_dist.formats.gguf_names import as_model

        return as_model(checkpoint, with_config)
    return checkpoint if raw else as_values(checkpoint, url if format == "folder" else parent(url), None, profile)


def _format(url: str, profile: Profile) -> str:
    if kind(url, profile) == "directory":
        return "folder"
    return "index" if url.endswith(".index.json") else "file"


def open_file(url: str, profile: Profile, with_config: bool) -> Checkpoint:
    """One file of weights, whatever it is called; of what lies beside it only other parts of a GGUF file are read."""
    header = read_file(url, profile)
    if header.format == "gguf":
        from diffai_dist.formats.gguf import parts_of

        if len(parts := parts_of(basename(url))) > 1:
            return assemble(url, read_shards(parent(url), parts, None, profile))
    return assemble(url, {basename(url): header})


def open_index(url: str, profile: Profile, with_config: bool) -> Checkpoint:
    """The shards that an index names, beside it."""
    files = None
    with contextlib.suppress(CheckpointError):  # what is named can be read without the right to list
        files = entries(parent(url), profile)
    return _with_neighbours(_open_indexed(url, url, files, profile), parent(url), files, profile, with_config)


def open_folder(url: str, profile: Profile, with_config: bool) -> Checkpoint:
    """The one checkpoint among the files of a folder; what else lies there is named and not read."""
    files = entries(url, profile)
    if not files and SNAPSHOTS in (inside := folders(url, profile)) and "refs" in inside:
        revisions = folders(join(url, SNAPSHOTS), profile)
        found = f"a Hugging Face cache folder with the snapshots {listed(revisions)}"
        raise UnknownFormat(redact(url), found, hint=f"Name one of them, {SNAPSHOTS}/<revision>")
    return _with_neighbours(_open_chosen(url, files, profile), url, files, profile, with_config)


def _open_chosen(url: str, files: Collection[str], profile: Profile) -> Checkpoint:
    layout = choose(files, redact(url))
    if layout.index:
        return _open_indexed(url, join(url, layout.index), files, profile, layout.warnings)
    if layout.metadata:
        from diffai_dist.formats.dcp import open_pieces

        return open_pieces(url, layout.metadata, files, profile, layout.warnings)
    if layout.single:
        header = read_file(join(url, layout.single), profile)
        return assemble(url, {layout.single: header}, warnings=layout.warnings)
    return assemble(url, read_shards(url, layout.shards, files, profile), warnings=layout.warnings)


def _with_neighbours(
    checkpoint: Checkpoint, folder: str, files: Collection[str] | None, profile: Profile, with_config: bool
) -> Checkpoint:
    """The checkpoint with what the other files of its folder tell, as far as they are known."""
    config, warnings = read_config(folder, files, profile) if with_config else (None, ())
    return dataclasses.replace(
        checkpoint,
        config=config,
        warnings=(*checkpoint.warnings, *warnings),
        violations=(*checkpoint.violations, *leftovers_of(checkpoint, folder, files or (), profile)),
    )


def _open_indexed(
    url: str, index_url: str, files: Collection[str] | None, profile: Profile, warnings: tuple[str, ...] = ()
) -> Checkpoint:
    """`url` is what the user named, `files` what lies beside the index where that is known."""
    index = _read_index(index_url, profile)
    shards = index.shards
    extra = sorted(set(siblings(basename(index_url), files or ())).difference(shards))
    if extra:
        warnings += (f"{len(extra):,} weight files beside the index are not part of it: {listed(extra)}",)
    return assemble(url, read_shards(parent(index_url), shards, files, profile), index, warnings)


def _read_index(url: str, profile: Profile) -> Index:
    source = pin(url, profile)
    if source.size > MAX_INDEX_BYTES:
        found = f"an index of {source.size:,} bytes"
        raise BadIndex(redact(url), found, expected=f"at most {MAX_INDEX_BYTES:,}", hint="Is it really an index?")
    return parse_index(read(source, 0, source.size, profile), redact(url))


FORMATS: Mapping[str, Callable[[str, Profile, bool], Checkpoint]] = {
    "file": open_file,
    "index": open_index,
    "folder": open_folder,
}
