"""The first screen of a sweep: what is new since last night, what broke, what moved, in ten lines at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffai_dist.errors import Failure
from diffai_dist.records import CLOSED, SEVERITIES, Change, Member, Sweep
from diffai_dist.report.columns import SHORTEST_NAME, cut, joined
from diffai_dist.report.overview import Overview, Told
from diffai_dist.report.pairs import total_coverage
from diffai_dist.report.tables import plain
from diffai_dist.report.wording import by_severity, failure_entry, not_compared, relative
from diffai_dist.terminal import cells, count, escape

LINES = 10
NAME = 48  # columns of a name


def night_lines(
    tonight: Overview, before: Overview | None = None, notes: Sequence[str] = (), width: int | None = None
) -> list[str]:
    """The lines, cut to the width where there is one; `before` is last night's run, and `notes` say what was reused."""
    head = [_title(tonight.sweep), *(_checkpoints(tonight.sweep, before.sweep) if before else ())]
    rest = [
        *_failures(tonight.sweep, before.sweep if before else None),
        *_newest(tonight, width),
        _coverage(tonight.sweep),
        *([f"reuse: {'; '.join(escape(note, 1024) for note in notes)}"] if notes else ()),
    ]
    room = LINES - len(head) - len(rest)
    return [cut(line, width) for line in (*head, *_findings(tonight, before, room, width), *rest)]


def _title(sweep: Sweep) -> str:
    name = f"sweep {escape(sweep.name, NAME)}" if sweep.name else "sweep"
    members = [escape(member.name, NAME) for member in sweep.members]
    span = " to ".join(dict.fromkeys((*members[:1], *members[-1:])))
    mode = f" ({escape(sweep.mode)})" if sweep.mode else ""
    parts = [count(len(members), "checkpoint"), *filter(None, [span]), count(len(sweep.pairs), "pair") + mode]
    return f"{name}: {', '.join(parts)}"


def _checkpoints(sweep: Sweep, before: Sweep) -> list[str]:
    """Which members are new, which hold other objects than they did, and how many are no longer looked at."""
    old = {member.url: member for member in before.members}
    new = [member for member in sweep.members if member.url not in old]
    rewritten = [member for member in sweep.members if member.url in old and _rewritten(member, old[member.url])]
    gone = len(old.keys() - {member.url for member in sweep.members})
    parts = [*_named(new, "new checkpoint"), *_named(rewritten, "rewritten checkpoint")]
    if gone:
        parts.append(f"{count(gone, 'checkpoint')} no longer in the run")
    return [f"since last night: {'; '.join(parts) or 'the same checkpoints'}"]


def _rewritten(member: Member, before: Member) -> bool:
    return bool(member.objects and before.objects) and set(member.objects) != set(before.objects)


def _named(members: Sequence[Member], noun: str) -> list[str]:
    if not members:
        return []
    names = [escape(member.name, NAME) for member in members[-2:]]
    return [f"{count(len(members), noun)} ({'' if len(members) <= 2 else '..., '}{', '.join(names)})"]


def _findings(tonight: Overview, before: Overview | None, room: int, width: int | None) -> list[str]:
    if before is None:
        summary = (
            f"findings: {by_severity(one.finding for one in tonight.findings)}" if tonight.findings else "no findings"
        )
        counting = [one for one in tonight.findings if one.finding.waived is None]
        return [summary, *_first(_listed("", counting, width), room - 1)]
    changes = _compare(tonight, before)
    parts = [
        f"{len(changes.new):,} new" + (f" ({by_severity(one.finding for one in changes.new)})" if changes.new else "")
    ]
    parts += [f"{len(changes.gone):,} gone"] * bool(changes.gone)
    parts += [f"{changes.known:,} as last night"] * bool(changes.known)
    parts += [f"{changes.unseen:,} of last night not looked for"] * bool(changes.unseen)
    parts += [f"{changes.waived:,} waived"] * bool(changes.waived)
    lines = [*_listed("new ", changes.new, width), *_listed("gone ", changes.gone, width)]
    return [f"findings: {', '.join(parts)}", *_first(lines, room - 1)]


def _listed(sign: str, told: Sequence[Told], width: int | None) -> list[str]:
    """A line each; what only informs is counted, and leaves the screen to the rest."""
    return [_finding(sign, one, width) for one in told if one.finding.severity != "info"]


@dataclass(frozen=True, slots=True)
class _Changes:
    """How the findings differ from last night's."""

    new: list[Told]  # or worse than they were
    gone: list[Told]
    known: int
    unseen: int  # last night's, about what was not looked at tonight
    waived: int  # tonight's; those of either night are neither new nor gone


def _compare(tonight: Overview, before: Overview) -> _Changes:
    every, then = _keyed(tonight), [both for both in _keyed(before) if both[1].finding.waived is None]
    now = [both for both in every if both[1].finding.waived is None]
    worst = {key: _rank(one) for key, one in reversed(then)}
    opened = {member.url for member in tonight.sweep.members if member.format}
    unread = {failure.tensor for failure in tonight.sweep.failures} - {None}
    in_view = {key for key, _ in then if key.analysis in tonight.asked and {*key.members} <= {*opened, None}}
    # What lasts is told at the first members of a run: where the run has moved on, the finding has moved with it.
    left = {key.about for key, _ in then if key not in in_view}
    moved = {key for key, one in now if key not in worst and key.about in left and _at_start(one, tonight.sweep)}
    new = [one for key, one in now if key not in moved and _rank(one) < worst.get(key, len(SEVERITIES))]
    told, kept = {key for key, _ in every}, {key.about for key in moved}
    missing = [(key, one) for key, one in then if key not in told and (key in in_view or key.about not in kept)]
    gone = [one for key, one in missing if key in in_view and one.finding.tensor not in unread]
    return _Changes(new, gone, len(now) - len(new), len(missing) - len(gone), len(every) - len(now))


@dataclass(frozen=True, slots=True)
class _Key:
    """What makes findings of two nights the same; members by URL, for their names may change from night to night."""

    analysis: str
    about: tuple[str, str, str | None]
    members: tuple[str | None, str | None]


def _keyed(seen: Overview) -> list[tuple[_Key, Told]]:
    """The findings, worst first, by their keys."""
    urls = {member.name: member.url for member in seen.sweep.members}
    found = []
    for one in seen.findings:
        sides = (one.finding.baseline, one.finding.candidate)
        baseline, candidate = (urls.get(name, name) if name else None for name in sides)
        found.append((_Key(one.analysis, (one.analysis, one.finding.rule, _subject(one)), (baseline, candidate)), one))
    return found


def _subject(one: Told) -> str | None:
    """The tensor or, where the value is a name, that."""
    value = one.finding.value
    return one.finding.tensor if one.finding.tensor is not None else value if isinstance(value, str) else None


def _rank(one: Told) -> int:
    return SEVERITIES.index(one.finding.severity)


def _at_start(one: Told, sweep: Sweep) -> bool:
    """Whether it is about the first interval, or what the first member holds."""
    first = {member.name for member in sweep.members[:2]}
    return {one.finding.baseline, one.finding.candidate} <= {*first, None}


def _finding(sign: str, one: Told, width: int | None) -> str:
    finding, subject = one.finding, _subject(one)
    start = f"  {sign}{finding.severity} {escape(finding.rule)}: "
    names = [name for name in (finding.baseline, finding.candidate) if name is not None]
    where = joined(names, NAME)
    if subject is None:
        return start + (where or plain(finding.value))
    return _around(start, subject, f", {where}" if names else "", width)


def _around(start: str, name: str, end: str, width: int | None) -> str:
    """The name takes what the rest of the line leaves, and is cut in the middle."""
    room = 2 * NAME if width is None else max(SHORTEST_NAME, width - cells(start) - cells(end))
    return f"{start}{escape(name, room)}{end}"


def _first(lines: list[str], room: int) -> list[str]:
    return lines if len(lines) <= room else [*lines[: room - 1], f"  {len(lines) - room + 1:,} more"]


def _failures(sweep: Sweep, before: Sweep | None) -> list[str]:
    """How many things could not be read, how many of them are new, and the first of these."""
    old = set(map(_identity, before.failures)) if before else set()
    new = [failure for failure in sweep.failures if _identity(failure) not in old]
    known, healed = len(sweep.failures) - len(new), len(old - set(map(_identity, sweep.failures)))
    parts = [f"{len(new):,} new" if before else f"{len(new):,}"] * bool(new)
    parts += [f"{known:,} as last night"] * bool(known) + [f"{healed:,} of last night gone"] * bool(healed)
    first = f"; first: {failure_entry(new[0])}" if new else ""
    return [f"failures: {', '.join(parts)}{first}"] if parts else []


def _identity(failure: Failure) -> tuple[str, str, str | None]:
    return failure.code, failure.object, failure.tensor


def _newest(tonight: Overview, width: int | None) -> list[str]:
    """How far the newest pair moved, against the median of all, and its tensor that moved most."""
    from statistics import median  # costs 7 ms

    pair = tonight.newest
    if pair is None:
        return []
    moves = [one.rel_l2 for one in _moves(tonight.sweep) if one.rel_l2 is not None]
    usual = median(moves) if len(moves) > 1 else 0
    shown = relative(pair.whole, pair.error_bound) if pair.whole else "-"
    line = f"newest: {joined((pair.baseline, pair.candidate), NAME)}, rel_l2 {shown}"
    if usual and pair.whole and pair.whole.rel_l2 is not None:
        line += f", {pair.whole.rel_l2 / usual:.3g} × the median"
    top = tonight.newest_mover
    if top is None or top.change is None:
        return [line]
    return [line, _around("  moved most: ", top.name, f", rel_l2 {relative(top.change, top.error_bound)}", width)]


def _moves(sweep: Sweep) -> list[Change]:
    """The pairs as wholes; of all pairs those of neighbours, as the newest is one."""
    places = {member.name: place for place, member in enumerate(sweep.members)}
    near = [one for one in sweep.pairs if sweep.mode != "all" or places[one.candidate] - places[one.baseline] == 1]
    return [one.whole for one in near if one.whole]


def _coverage(sweep: Sweep) -> str:
    covered = total_coverage(sweep)
    some = "all" if covered.complete else f"{covered.tensors_compared:,} of"
    closed = sum(pair.coverage.not_compared.get(CLOSED, 0) > 0 for pair in sweep.pairs)
    of = f"{len(sweep.pairs) - closed:,} of " if closed else ""
    line = f"compared {some} {count(covered.tensors, 'tensor')} in {of}{count(len(sweep.pairs), 'pair')}"
    if closed:  # counted by sides, of which the line on failures knows more
        covered = dataclasses.replace(covered, not_compared=_without(covered.not_compared, CLOSED))
    alone = [f"not read: {text}" for text in _named(_unread(sweep), "unpaired checkpoint")]
    return "; ".join((line, *not_compared(covered), *_lost(sweep), *alone))


def _without(reasons: Mapping[str, int], name: str) -> dict[str, int]:
    return {reason: number for reason, number in reasons.items() if reason != name}


def _lost(sweep: Sweep) -> list[str]:
    """How many pairs are nearer to each other than rounding about the anchor can tell."""
    bounds = ((pair.whole.l2, pair.error_bound.l2) for pair in sweep.pairs if pair.whole and pair.error_bound)
    lost = sum(distance is not None and distance <= error > 0 for distance, error in bounds)
    remedy = "choose another --baseline, or measure --elementwise"
    return [f"{count(lost, 'pair')} lost to rounding about the anchor: {remedy}"] * bool(lost)


def _unread(sweep: Sweep) -> list[Member]:
    """Members that were opened, but are in no pair both of whose sides were: nothing is known of their weights."""
    read = {name for pair in sweep.pairs if pair.coverage.tensors for name in (pair.baseline, pair.candidate)}
    return [member for member in sweep.members if member.tensors and member.name not in read]
