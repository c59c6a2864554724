"""Metrics of DCASE 2022 Task 2: source AUC, target AUC, pAUC and their harmonic means.

Everywhere 1 (or True) means anomaly and a higher score means more anomalous. Scores and labels come
section by section, as :class:`SectionScores`; :mod:`asdproto.results.official` reads and writes the
official csv files of such tables.

References:
  Dohi et al., Description and discussion on DCASE 2022 challenge task 2: Unsupervised anomalous
  sound detection for machine condition monitoring applying domain generalization techniques, 2022.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asdproto.scoring.rows import rows_by

AUC_METRICS = ("source_auc", "target_auc", "pauc")
DECISION_METRICS = (
    "precision_source",
    "precision_target",
    "recall_source",
    "recall_target",
    "f1_source",
    "f1_target",
)
DOMAINS = ("source", "target")


class UndefinedMetricWarning(UserWarning):
    """A figure does not exist for the given clips; it is nan and left out of every mean."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SectionScores:
    """Anomaly scores and ground truth of the test clips of one section of one machine type.

    Attributes:
      machine_type: Name of the machine type, for example ``"fan"``.
      section: Name of the section, for example ``"00"``.
      files: Base name per clip, length ``n``.
      scores: float64, shape ``[n]``, finite; higher is more anomalous.
      anomaly: bool, shape ``[n]``.
      domains: ``"source"``, ``"target"`` or ``""`` per clip, shape ``[n]``. A collection without
        domains has one: clips with ``""`` count as source.
      decisions: bool, shape ``[n]``, True where the system called the clip an anomaly, or None.

    Raises:
      ValueError: Lengths differ, a score is not finite, or a domain has another name.
    """

    machine_type: str
    section: str
    files: tuple[str, ...]
    scores: np.ndarray
    anomaly: np.ndarray
    domains: np.ndarray
    decisions: np.ndarray | None = None

    def __post_init__(self) -> None:
        name, count = f"{self.machine_type} section {self.section}", len(self.files)
        object.__setattr__(self, "files", tuple(self.files))
        dtypes = {"scores": np.float64, "anomaly": bool, "domains": np.str_, "decisions": bool}
        for field, dtype in dtypes.items():
            value = getattr(self, field)
            if value is None and field == "decisions":
                continue
            value = np.asarray(value, dtype)
            if value.shape != (count,):
                raise ValueError(
                    f"{name}: {field} has shape {value.shape}, expected ({count},): one per file"
                )
            object.__setattr__(self, field, value)
        bad = np.flatnonzero(~np.isfinite(self.scores))
        if bad.size:
            raise ValueError(
                f"{name}: {bad.size} of {count} scores are not finite; the first is "
                f"{self.scores[bad[0]]} of {self.files[bad[0]]}. Look for a diverged model or an "
                "empty clip"
            )
        unknown = sorted(set(self.domains.tolist()) - {*DOMAINS, ""})
        if unknown:
            raise ValueError(
                f"{name}: found domain {unknown[0]!r}, expected 'source', 'target' or ''"
            )

    def in_domain(self, domain: str) -> np.ndarray:
        """bool, shape ``[n]``: the clips of ``"source"`` (``""`` included) or of ``"target"``."""
        is_target = self.domains == "target"
        return is_target if domain == "target" else ~is_target


def group_scores(
    clips: Sequence[Any],
    scores: np.ndarray | Sequence[float],
    decisions: np.ndarray | Sequence[int] | None = None,
) -> list[SectionScores]:
    """Gathers scored clips into one table per section, sorted by machine type and section.

    Args:
      clips: Clips with ``machine_type``, ``section``, ``domain``, ``state`` and ``name``, as
        :class:`asdproto.data.dcase.Clip` has; length ``n``. Order is kept within a section.
      scores: Anomaly scores, shape ``[n]``.
      decisions: 0 or 1 per clip, shape ``[n]``, or None.

    Returns:
      One table a section, sorted; ``files`` are those of :func:`clip_files`.

    Raises:
      ValueError: A clip's state is unknown, lengths differ, or a score is not finite.
    """
    scores = np.asarray(scores, np.float64)
    verdicts = None if decisions is None else np.asarray(decisions)
    for name, value in (("scores", scores), ("decisions", verdicts)):
        if value is not None and value.shape != (len(clips),):
            raise ValueError(f"{name} has shape {value.shape}, expected ({len(clips)},)")
    for clip in clips:
        if clip.state not in ("normal", "anomaly"):
            raise ValueError(
                f"{clip.name}: the state is {clip.state!r}, expected 'normal' or 'anomaly'; clips "
                "without ground truth can be scored but not evaluated"
            )
    sections = rows_by([(clip.machine_type, clip.section) for clip in clips])
    return [
        SectionScores(
            machine_type=machine_type,
            section=section,
            files=clip_files([clips[row] for row in rows]),
            scores=scores[rows],
            anomaly=np.array([clips[row].state == "anomaly" for row in rows]),
            domains=np.array([clips[row].domain for row in rows]),
            decisions=None if verdicts is None else verdicts[rows],
        )
        for (machine_type, section), rows in sorted(sections.items())
    ]


def clip_files(clips: Sequence[Any]) -> tuple[str, ...]:
    """What the clips of one section, with ``name`` and ``path``, are called in score files.

    Base names, as the official files have them; paths where two of the clips share a name, as
    happens in collections that keep normal clips and anomalies in folders.
    """
    names = tuple(clip.name for clip in clips)
    return names if len(set(names)) == len(names) else tuple(clip.path for clip in clips)


def auc(scores: np.ndarray, anomaly: np.ndarray) -> float:
    """Area under the ROC curve: the chance that an anomaly scores above a normal clip.

    Arguments are those of :func:`partial_auc`. Ties count half.
    """
    return partial_auc(scores, anomaly, max_fpr=1.0)


def partial_auc(scores: np.ndarray, anomaly: np.ndarray, *, max_fpr: float = 0.1) -> float:
    """Area under the ROC curve over false-positive rates in ``[0, max_fpr]``, standardized.

    The area is standardized after McClish, as scikit-learn does: chance is 0.5 and the best is 1,
    whatever ``max_fpr``. A detector worse than chance over the range can reach down to about 0.47
    at 0.1, not to 0.

    Args:
      scores: Floating, shape ``[n]``.
      anomaly: bool, shape ``[n]``.
      max_fpr: In (0, 1].

    Returns:
      The standardized area; nan where one of the two kinds is absent.

    References:
      McClish, Analyzing a portion of the ROC curve, Medical Decision Making 9(3), 1989.
    """
    from sklearn.metrics import roc_auc_score

    anomaly = np.asarray(anomaly, bool)
    if not anomaly.any() or anomaly.all():
        return math.nan
    return float(roc_auc_score(anomaly, scores, max_fpr=max_fpr))


def harmonic_mean(values: Iterable[float]) -> float:
    """Harmonic mean of figures in [0, 1] (or percentages), each floored at float64 epsilon.

    Undefined figures (nan) are left out; a caller who must know counts them first, as
    :func:`evaluate` does. Without any defined figure the mean is nan.
    """
    from scipy.stats import hmean

    defined = np.array([value for value in values if not math.isnan(value)], np.float64)
    if not defined.size:
        return math.nan
    return float(hmean(np.maximum(defined, np.finfo(np.float64).eps)))


def precision_recall_f1(decisions: np.ndarray, anomaly: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 score, each in [0, 1], of boolean decisions ``[n]``.

    No clip called an anomaly gives precision and F1 of 0, as the official evaluator has it; without
    any anomaly among the clips all three are nan.
    """
    decisions, anomaly = np.asarray(decisions, bool), np.asarray(anomaly, bool)
    if not anomaly.any():
        return math.nan, math.nan, math.nan
    hits = int(np.sum(decisions & anomaly))
    precision = hits / max(int(decisions.sum()), 1)
    recall = hits / int(anomaly.sum())
    f1 = 2.0 * hits / (int(decisions.sum()) + int(anomaly.sum()))
    return precision, recall, f1


def section_metrics(table: SectionScores) -> dict[str, float]:
    """All figures of one section.

    Source AUC compares the normal clips of the source domain with the anomalies of **both**
    domains, target AUC those of the target domain with the same anomalies; pAUC is over all clips
    of the section. Precision, recall and F1 use the clips of their domain only.

    Returns:
      ``source_auc``, ``target_auc``, ``pauc`` and, where the table has decisions,
      ``precision_source`` .. ``f1_target``. A figure that the clips do not define is nan.
    """
    result = {}
    for domain in DOMAINS:
        chosen = table.anomaly | table.in_domain(domain)
        result[f"{domain}_auc"] = auc(table.scores[chosen], table.anomaly[chosen])
    result["pauc"] = partial_auc(table.scores, table.anomaly)
    if table.decisions is not None:
        by_domain = [
            precision_recall_f1(table.decisions[chosen], table.anomaly[chosen])
            for chosen in map(table.in_domain, DOMAINS)
        ]
        # Precision of both domains, recall of both, F1 of both.
        values = itertools.chain.from_iterable(zip(*by_domain, strict=True))
        result.update(zip(DECISION_METRICS, values, strict=True))
    return result


def evaluate(tables: Iterable[SectionScores]) -> dict[str, Any]:
    """Figures of a scored test set: per section, per machine type, per metric and overall.

    A machine type's figure is the harmonic mean over its sections and the three metrics, a metric's
    that over all sections, ``overall`` that over all sections and metrics. A figure that the clips
    do not define (a section without anomalies, or without normal clips of a domain) is nan: it is
    listed in ``undefined``, warned of, and left out of every mean, never replaced by a number.

    Args:
      tables: One per section.

    Returns:
      ``{"overall", "source_auc", "target_auc", "pauc", "machines": {machine: {"overall",
      "source_auc", "target_auc", "pauc", "sections": {section: figures}}}, "undefined": [...]}``
      with figures in [0, 1] as :func:`section_metrics` names them. Where every section has
      decisions, precision, recall and F1 stand beside the three at each level.

    Raises:
      ValueError: No table, or two for one section.

    Warns:
      UndefinedMetricWarning: Some figures are undefined; the message names them.
    """
    sections: dict[str, dict[str, dict[str, float]]] = {}
    undefined: list[str] = []
    for table in sorted(tables, key=lambda table: (table.machine_type, table.section)):
        machine = sections.setdefault(table.machine_type, {})
        if table.section in machine:
            raise ValueError(
                f"{table.machine_type} section {table.section} is given twice, expected once"
            )
        figures = section_metrics(table)
        machine[table.section] = figures
        undefined += _undefined(table, figures)
    if not sections:
        raise ValueError("there are no scores to evaluate: expected at least one section")
    if undefined:
        warnings.warn(
            "undefined figures are left out of the means: " + "; ".join(undefined),
            UndefinedMetricWarning,
            stacklevel=2,
        )
    result = _means([figures for machine in sections.values() for figures in machine.values()])
    result["machines"] = {
        machine: {**_means(list(figures.values())), "sections": figures}
        for machine, figures in sections.items()
    }
    result["undefined"] = undefined
    return result


def _means(sections: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Harmonic means over sections: all AUC metrics together, then each metric."""
    names: tuple[str, ...] = AUC_METRICS
    if all(DECISION_METRICS[0] in figures for figures in sections):
        names += DECISION_METRICS
    everything = [figures[name] for figures in sections for name in AUC_METRICS]
    return {
        "overall": harmonic_mean(everything),
        **{name: harmonic_mean(figures[name] for figures in sections) for name in names},
    }


def _undefined(table: SectionScores, figures: Mapping[str, float]) -> list[str]:
    """One sentence per section that says which figures do not exist, and why."""
    names = [name for name, value in figures.items() if math.isnan(value)]
    if not names:
        return []
    lacking = [
        f"{kind} clips of the {domain} domain"
        for domain in DOMAINS
        for kind, chosen in (("normal", ~table.anomaly), ("anomalous", table.anomaly))
        if not np.any(chosen & table.in_domain(domain))
    ]
    if not table.anomaly.any():
        lacking = ["anomalies"]
    elif table.anomaly.all():
        lacking = ["normal clips"]
    why = "has no " + " and no ".join(lacking)
    return [f"{table.machine_type} section {table.section} {why} ({', '.join(names)})"]


def summarize(results: Sequence[Mapping[str, Any]], where: str = "results") -> dict[str, Any]:
    """Mean and standard deviation of every figure over runs that differ in their seed.

    Args:
      results: Dictionaries of one shape, as :func:`evaluate` returns them; at least one.
      where: What they are called in messages.

    Returns:
      The same nesting with ``{"mean", "std", "count"}`` in the place of every figure. ``std`` is
      the sample standard deviation (divisor count - 1), nan for a single run. A figure undefined in
      one run is undefined in the summary.

    Raises:
      ValueError: No result, or results with different machine types, sections or figures.
    """
    if not results:
        raise ValueError("there are no results to summarize: expected at least one")
    keys = [key for key in results[0] if key != "undefined"]
    for number, result in enumerate(results):
        if result.keys() - {"undefined"} != set(keys):
            raise ValueError(
                f"{where}: result {number} has {sorted(result)}, the first has {sorted(keys)}; "
                "only runs over the same test set can be summarized"
            )
    summary: dict[str, Any] = {}
    for key in keys:
        values = [result[key] for result in results]
        if isinstance(values[0], Mapping):
            summary[key] = summarize(values, f"{where}.{key}")
        else:
            summary[key] = _spread([math.nan if value is None else value for value in values])
    return summary


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How a figure of one system differs from another's over runs with the same seeds.

    Seeds move both systems of a run alike, so that differences within runs say more than the
    difference of means.

    Args:
      first: The figure of one system, one per run.
      second: The other's, in the same order.

    Returns:
      ``{"mean", "std", "count", "higher"}`` of ``second - first``, as :func:`summarize` has them;
      ``higher`` counts the runs in which ``second`` is the higher one.

    Raises:
      ValueError: Not as many figures of one as of the other, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"paired figures: found {len(first)} and {len(second)}, expected as many of both"
        )
    gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return {**_spread(gains), "higher": int((gains > 0).sum())}


def _spread(figures: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, sample standard deviation (nan of a single figure) and count."""
    values = np.asarray(figures, np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return {"mean": float(values.mean()), "std": std, "count": len(values)}
