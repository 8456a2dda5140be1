"""What text and Markdown both say: numbers, one tensor's entries, the total and the coverage."""

from __future__ import annotations

import dataclasses
import decimal
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from diffai_dist.errors import Failure
from diffai_dist.records import SEVERITIES, Change, Coverage, ErrorBound, Finding, Number, Result, Side, TensorRecord
from diffai_dist.terminal import count, escape, size


def number(value: Number) -> str:
    """Four decimals where they keep two significant digits, else scientific; `-` where not defined.

    >>> number(0.0018), number(-0.000213), number(0.0), number(None), number(2**63), number(1e9)
    ('0.0018', '-2.13e-04', '0', '-', '9223372036854775808', '1.00e+09')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if 0.001 <= abs(value) < 1e7:
        return f"{value:.4f}"
    return f"{value:.2e}" if value else "0"


def percent(fraction: Number) -> str:
    """A share in percent, never rounded to nothing or to all.

    >>> percent(0.31), percent(1), percent(0.999999), percent(1e-9), percent(0), percent(None)
    ('31%', '100%', '>99.9%', '1e-07%', '0%', '-')
    """
    if fraction is None:
        return "-"
    text = f"{100 * fraction:.3g}%"
    return ">99.9%" if text == "100%" and fraction < 1 else text


def bounded(value: Number, error: float | None) -> str:
    """The number, with its worst-case error where that is above 1e-9 of it.

    >>> bounded(0.0123, 4e-13), bounded(0.0123, 4.2e-6), bounded(0.0, 1e-12), bounded(None, None)
    ('0.0123', '0.0123±5e-06', '0±1e-12', '-')
    """
    if value is None or error is None or error <= 1e-9 * abs(value):
        return number(value)
    return f"{number(value)}±{float(_UPWARDS.create_decimal(str(error))):.0e}"


_UPWARDS = decimal.Context(prec=1, rounding=decimal.ROUND_CEILING)  # a bound stays one when it is rounded


def relative(change: Change, bound: ErrorBound | None = None) -> str:
    """rel_l2, `inf` for a change from zero; a distance of 0 has no scale for its error, so l2 carries it."""
    if change.rel_l2 is None or change.l2 is None or bound is None:
        return "inf" if change.rel_l2 is None and change.l2 else number(change.rel_l2)
    if not change.l2:
        return f"0 (l2={bounded(0, bound.l2)})" if bound.l2 else "0"
    return bounded(change.rel_l2, bound.rel_l2)


def angle(change: Change, bound: ErrorBound | None = None) -> str:
    """1 - cos between both sides."""
    return bounded(change.cosine_distance, bound.cosine_distance if bound else None)


def arrow(baseline: str, candidate: str) -> str:
    """Both sides of a statistic, or a single `-` where neither has it."""
    return "-" if baseline == candidate == "-" else f"{baseline}->{candidate}"


def shape(side: Side) -> str:
    """The shape as `[2, 3]`."""
    return f"[{', '.join(map(str, side.shape))}]"


def entries(record: TensorRecord, verbose: bool = False) -> list[str]:
    """What one tensor's line says as `key=value`: mean and std of a change first, then the rest by importance."""
    baseline, candidate = record.baseline, record.candidate
    if baseline is None or candidate is None:
        only = baseline or candidate
        found = _single(only, verbose) if only else []
    elif record.status == "identical":
        found = _identical(record, candidate)
    else:
        found = _both(record, baseline, candidate, verbose)
    if record.candidate_name is not None:
        found.append(f"candidate_name={escape(record.candidate_name, 256)}")
    explained = record.reason is None or not (record.change is None or any(map(_UNDEFINED.search, found)))
    return found if explained else [*found, f"reason={escape(record.reason or '', 1024)}"]


_UNDEFINED = re.compile(r"=-$|=-@|=-->|->-$|=inf$")  # a reason is shown beside a number that is missing


def _single(side: Side, verbose: bool) -> list[str]:
    found = [f"shape={shape(side)}", f"dtype={escape(side.dtype)}", f"mean={number(side.mean)}"]
    found.append(f"std={number(side.std)}")
    if verbose:
        found += [f"min={number(side.min)}", f"max={number(side.max)}", f"l2={number(side.l2)}"]
    return found + [f"{key}={count}" for key, count in non_finite(side).items() if count]


def _identical(record: TensorRecord, side: Side) -> list[str]:
    found = [f"mean={number(side.mean)}", f"std={number(side.std)}"]
    if record.within_epsilon is not None:
        largest = number(record.change.max_abs if record.change else None)
        found.append(f"within epsilon {record.within_epsilon} (max_abs={largest})")
    return found


def _both(record: TensorRecord, baseline: Side, candidate: Side, verbose: bool) -> list[str]:
    change = record.change
    found = [] if change else [f"shape={arrow(shape(baseline), shape(candidate))}"]
    found.append(f"mean={arrow(number(baseline.mean), number(candidate.mean))}")
    found.append(f"std={arrow(number(baseline.std), number(candidate.std))}")
    if change:
        found += _change(change) if record.error_bound is None else _products(change, record.error_bound)
    if baseline.dtype != candidate.dtype:
        found.append(f"dtype={arrow(escape(baseline.dtype), escape(candidate.dtype))}")
    counts = zip(non_finite(baseline).items(), non_finite(candidate).values(), strict=True)
    found += [f"{key}={before}->{after}" for (key, before), after in counts if before or after]
    return found + _details(baseline, candidate, record) if verbose else found


def _products(change: Change, bound: ErrorBound) -> list[str]:
    """What inner products tell; the rest needs the elements, which is said once for all."""
    return [f"rel_l2={relative(change, bound)}", f"cosine_distance={angle(change, bound)}", "method=gram"]


def _change(change: Change) -> list[str]:
    index = f"@{change.max_abs_index}" if change.max_abs and change.max_abs_index is not None else ""
    found = [f"rel_l2={relative(change)}"]
    found.append(f"max_abs={number(change.max_abs)}{index}")
    found.append(f"changed={percent(change.changed_fraction)}")
    if change.bits_changed_fraction and not change.changed_fraction:  # -0 for +0, or NaNs of another payload
        found.append(f"bits_changed={percent(change.bits_changed_fraction)}")
    return found


def _details(baseline: Side, candidate: Side, record: TensorRecord) -> list[str]:
    change = record.change
    found = [f"shape={shape(candidate)}"] if change else []
    for key in ("min", "max", "l2", "zeros"):
        found.append(f"{key}={arrow(number(getattr(baseline, key)), number(getattr(candidate, key)))}")
    if change and record.error_bound is None:
        found += [f"{key}={number(getattr(change, key))}" for key in ("rel_l1", "mean_abs", "cosine_distance")]
        found.append(f"sign_flips={percent(change.sign_flip_fraction)}")
    return found


def non_finite(side: Side) -> dict[str, int]:
    """How many elements are not finite, by kind."""
    return {"nans": int(side.nans or 0), "infs": int(side.posinfs or 0) + int(side.neginfs or 0)}


def failure_entry(failure: Failure) -> str:
    """Where, what and the remedy, on one line, every part made harmless."""
    where = escape(failure.object, 1024)
    if failure.tensor is not None:
        where += f": tensor {escape(failure.tensor)}"
    expected = f", expected {escape(failure.expected, 1024)}" if failure.expected else ""
    hint = f". {escape(failure.hint, 1024)}" if failure.hint else ""
    return f"{where}: {escape(failure.found, 1024)}{expected}{hint} [{failure.code}]"


def failure_entries(failures: Sequence[Failure], verbose: bool = False) -> list[str]:
    """One entry per failure; where one cause spoils many tensors of an object, the first stands for the others."""
    groups: dict[Failure, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(dataclasses.replace(failure, tensor=None), []).append(failure)
    entries: list[str] = []
    for group in groups.values():
        few = verbose or len(group) <= FEW
        entries += map(failure_entry, group if few else group[:1])
        if not few:
            entries[-1] += f" (and {len(group) - 1:,} more tensors, all in --output json)"
    return entries


FEW = 3  # failures with one cause that are listed one by one


def total_line(result: Result) -> str:
    """How many tensors ended how, and how far the whole checkpoint moved."""
    counts = Counter(record.status for record in result.tensors)
    quiet = sum(record.within_epsilon is not None for record in result.tensors)
    identical = f"{counts['identical']:,} identical" + (f" ({quiet:,} within epsilon)" if quiet else "")
    rare = [f"{counts[status]:,} {status}" for status in ("incomparable", "failed") if counts[status]]
    if not result.differs:
        if result.failures and not result.tensors:
            return "nothing was compared"
        scope = "" if result.complete and not counts["failed"] else " in what could be read"
        return f"no differences{scope} · " + ", ".join((identical, *rare))
    common = [f"{counts[status]:,} {status}" for status in ("changed", "added", "removed")]
    moved = f" · rel_l2 {number(result.rel_l2)}" if result.rel_l2 is not None else ""
    return ", ".join((*common, *rare, identical)) + moved


def by_severity(findings: Iterable[Finding]) -> str:
    """`1 critical, 2 high, 1 waived`."""
    counts = Counter[str](one.severity if one.waived is None else "waived" for one in findings)
    return ", ".join(f"{counts[severity]:,} {severity}" for severity in (*SEVERITIES, "waived") if counts[severity])


def findings_part(findings: Sequence[Finding]) -> list[str]:
    """How many findings there are, as the end of a total; nothing where there are none."""
    return [f"{count(len(findings), 'finding')}: {by_severity(findings)}"] if findings else []


def coverage_lines(result: Result) -> list[str]:
    """What was compared out of what there is, and what was not, by reason."""
    return covered_lines(result.coverage)


def covered_lines(coverage: Coverage) -> list[str]:
    """The same of any coverage."""
    lines = [_compared(coverage)]
    if coverage.byte_by_byte:
        lines.append(f"{count(coverage.byte_by_byte, 'tensor')} compared byte by byte: dtype without a decoder")
    return lines + not_compared(coverage)


def not_compared(coverage: Coverage) -> list[str]:
    """What was left out, by reason, as one line; none where nothing was."""
    reasons = [
        f"{number_of:,} {escape(reason, 1024)}" if number_of else escape(reason, 1024)
        for reason, number_of in coverage.not_compared.items()
    ]
    return [f"not compared: {', '.join(reasons)}"] if reasons else []


def _compared(coverage: Coverage) -> str:
    if not coverage.tensors:
        return "compared no tensors"
    if coverage.tensors_compared == coverage.tensors:
        elements, nbytes = count(coverage.elements, "element"), size(coverage.bytes)
        every = "all " if coverage.tensors > 1 else ""
        return f"compared {every}{count(coverage.tensors, 'tensor')}, {elements}, {nbytes}"
    return (
        f"compared {coverage.tensors_compared:,} of {count(coverage.tensors, 'tensor')}, "
        f"{coverage.elements_compared:,} of {count(coverage.elements, 'element')}, "
        f"{size(coverage.bytes_compared)} of {size(coverage.bytes)}"
    )
