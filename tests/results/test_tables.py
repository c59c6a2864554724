import dataclasses
import io

import numpy as np
from rich.console import Console

from asdproto.data.dcase import Clip
from asdproto.results import tables
from asdproto.scoring import metrics

STATES = ("normal", "anomaly")


def test_figures_as_text():
    assert tables.percent(0.75254) == "75.25"
    assert tables.percent(float("nan")) == tables.percent(None) == "–"
    assert tables.percent({"mean": 0.7, "std": 0.012, "count": 3}) == "70.00 ± 1.20"
    assert tables.percent({"mean": 0.7, "std": None}, 1, signed=True) == "+70.0"
    assert tables.percent({"mean": None, "std": None}) == "–"
    assert tables.number(None, ".2f") == tables.number(float("inf"), ".2f") == "–"
    assert tables.number(1.234, ".2f") == "1.23"
    assert tables.highest([0.5, 0.70001, None, 0.70004]) == {1, 3}


def printed(results, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tables.print_table(results, console=console)
    return console.file.getvalue()


def figures(seed):
    rng = np.random.default_rng(seed)
    sections = [("fan", "00"), ("fan", "01"), ("valve", "00")]
    clips = [Clip("x", *key, "", "test", state, "") for key in sections for state in STATES]
    clips = [dataclasses.replace(one, domain=name) for one in clips for name in metrics.DOMAINS]
    return metrics.evaluate(metrics.group_scores(5 * clips, rng.normal(size=60)))


def test_printed_tables():
    one, two = figures(0), figures(1)
    third = {"overall": 0.5, "machines": {"valve": {"overall": 0.5}}}
    text = printed({"systems": {"[red]ours": one, "theirs": two, "third": third}})
    # Names are shown as they are, not read as markup.
    row = next(line for line in text.splitlines() if "[red]ours" in line)
    assert row.split() == ["[red]ours", *(tables.percent(one[m]) for m in tables.HEADLINE)]
    row = next(line for line in text.splitlines() if line.startswith(" fan"))
    overall = [tables.percent(r["machines"]["fan"]["overall"]) for r in (one, two)]
    assert row.split()[1:] == [*overall, "–"]
    single = printed(one)
    sections = one["machines"]["fan"]["sections"]
    row = next(line for line in single.splitlines() if line.startswith(" fan"))
    three = [sections["00"][name] for name in metrics.AUC_METRICS]
    assert row.split() == ["fan", "00", *(f"{100 * value:.2f}" for value in three)]
    assert "harmonic mean" in single
    # Eighty columns hold it without cutting columns.
    assert max(map(len, printed({"systems": {"ours": one, "theirs": two}}, 80).splitlines())) <= 80
