"""What happened to tokens: rows of embeddings and heads that moved, or are new, and whether both are still one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.telling import told_here
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Severity, TensorRecord

if TYPE_CHECKING:
    from diffai_dist.analyses.vocabulary import Tie, Vocabulary

_ROWS = 20  # of a table of tokens


@dataclass(frozen=True)
class EmbeddingAnalysis:
    """Token by token what changed in embeddings and heads, and the tie between the two: by file, by value, by config.

    A token is a row, named by its index. A row moved alone by decay where 1 - cos is below `decay_distance` and its
    norm shrank. Where a vocabulary grew, rows cannot be paired by their bits: those of equal statistics are possibly
    the same. Under-trained tokens are candidates, the lowest `undertrained_share` of row norms. Embedding and head are
    tied by file where there is no head, by value where bits are equal (digests and statistics), by config where it says
    so. What is as bad in the baseline is told of the baseline, in its first pair. What a token means cannot be read
    from weights.
    """

    name: ClassVar[str] = "embedding_analysis"
    flag: ClassVar[str] = "--embedding-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("config", "content", "rows")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "tied": "of baseline and candidate (side): embedding and head by name (null: none), by_file, by_value and"
        " by_config (null where unknown)",
        "tables": "of each embedding and head with rows in both: tensor, rows, changed_rows, never_updated rows while"
        " others changed, decay_only rows, median and largest rel_l2 = ‖d‖ / ‖a‖ of a row",
        "top_tokens": "the 20 rows with the largest rel_l2 of all: tensor, token, rel_l2, cosine_distance, norm_ratio",
        "resized": "of each whose number of rows differs: tensor, baseline_rows, candidate_rows, same_statistics of"
        " rows in both, new_zero rows, new_equal rows that are possibly an earlier new one, norm_ratio of the median"
        " new row to the median old one",
        "undertrained": "the 20 shortest rows of the candidate's embedding other than 0: tensor, token, norm,"
        " of_median",
        "undertrained_of": "rows not 0 within the lowest `undertrained_share`; null where rows were not measured",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "lost-tie": "the baseline's head is its embedding, by value or for want of one, the candidate's is not: high;"
        " low for want of one that no config explains, info where the candidate's config says that they are apart",
        "tie-disagrees": "the config says that both are tied, and their values differ: high",
        "zero-head": "a head of nothing but zeros: high",
        "rebuilt-head": "|cos| between both heads is below `rebuilt_cosine`, and that of the embeddings above"
        " `kept_cosine`: high",
        "vocabulary-resized": "the embedding has another number of rows: info",
        "zero-new-rows": "new rows of nothing but zeros: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "under-trained candidates as the lowest 2 % of row norms: default of cohere-ai/magikarp (published); they are"
        " confirmed there by prompting",
        "decay alone as 1 - cos below 1e-7 and a shorter row; cosines of a head drawn anew: judgement",
        "bits by digest: derived",
    )

    undertrained_share: float = threshold(0.02, "lowest share of row norms that is listed", "cohere-ai/magikarp")
    decay_distance: float = threshold(1e-7, "1 - cos, below which a row that shrank only decayed")
    rebuilt_cosine: float = threshold(0.1, "|cos| between two heads, below which one was drawn anew")
    kept_cosine: float = threshold(0.5, "cos between two embeddings, above which they are one training")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Both sides' ties, then token by token."""
        from diffai_dist.analyses.vocabulary import Vocabulary  # brings NumPy, which --help does not need

        vocabulary = Vocabulary(measured, pair_index)
        baseline, candidate = vocabulary.members
        ties = vocabulary.tie(baseline), vocabulary.tie(candidate)
        resized = list(vocabulary.resized())
        undertrained = vocabulary.undertrained(self.undertrained_share)
        result: dict[str, Any] = {
            "tied": [_tie_row(*one) for one in zip(("baseline", "candidate"), ties, strict=True)],
            "tables": [vocabulary.table(tensor, self.decay_distance) for tensor in vocabulary.paired],
            "top_tokens": vocabulary.top(_ROWS),
            "resized": resized,
            "undertrained": (undertrained or [])[:_ROWS],
            "undertrained_of": None if undertrained is None else len(undertrained),
        }
        untied = [*_broken(vocabulary), *_lost(ties)]
        rebuilt = [] if untied else self._rebuilt(vocabulary.cosines(*ties))  # the same fault, said once
        return AnalysisRecord(self.name, result, (*untied, *rebuilt, *_of_resized(resized)))

    def _rebuilt(self, cosines: tuple[str, float, float] | None) -> Iterator[Finding]:
        if cosines is None:
            return
        tensor, heads, embeddings = cosines
        if abs(heads) < self.rebuilt_cosine and embeddings > self.kept_cosine:
            told = finding(self, "rebuilt-head", "high", tensor, heads, "rebuilt_cosine")
            words = f"cosine to the baseline's head; that of the embeddings is {embeddings:.4g}"
            yield replace(told, source=f"{words}; {told.source}")


def _tie_row(side: str, tie: Tie) -> dict[str, Any]:
    return {
        "side": side,
        "embedding": tie.embedding,
        "head": tie.head,
        "by_file": tie.by_file,
        "by_value": tie.by_value,
        "by_config": tie.by_config,
    }


def _broken(vocabulary: Vocabulary) -> Iterator[Finding]:
    """What is wrong with one side by itself."""

    def problems(member: int) -> dict[str, tuple[str | None, str]]:
        tie = vocabulary.tie(member)
        if tie.zero_head:
            return {"zero-head": (tie.head, "zeros, all its values")}
        if tie.by_config and tie.by_value is False:
            return {"tie-disagrees": (tie.head, f"the config ties it to {tie.embedding}, whose values differ")}
        return {}

    pairs = vocabulary.measured.comparison.pairs
    for side, rule, (tensor, words) in told_here(pairs, vocabulary.pair_index, problems):
        yield Finding(rule, "high", tensor, None, None, f"of the {side}: {words}")


def _lost(ties: Sequence[Tie]) -> Iterator[Finding]:
    """A tie that the baseline had, by value or by file."""
    baseline, candidate = ties
    if candidate.by_value is not False or candidate.zero_head or candidate.by_config:
        return  # there is none to lose, or another finding says it
    if baseline.by_value or baseline.by_file:
        how = "by value" if baseline.by_value else "for want of a head"
        known = baseline.by_value or baseline.by_config  # else the head may have been left away
        severity: Severity = "info" if candidate.by_config is False else "high" if known else "low"
        source = f"tied in the baseline {how}; here its values are not those of {candidate.embedding}"
        yield Finding("lost-tie", severity, candidate.head, None, None, source)


def _of_resized(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        more = row["candidate_rows"] - row["baseline_rows"]
        yield Finding(
            "vocabulary-resized", "info", row["tensor"], more, None, "rows more, or fewer, than in the baseline"
        )
        if row["new_zero"]:
            yield Finding("zero-new-rows", "low", row["tensor"], row["new_zero"], 0, "new rows of zeros")
