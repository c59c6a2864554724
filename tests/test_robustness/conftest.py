"""One tiny collection and one tiny run of it, which tests damage copies of."""

import pytest

from asdproto import cli
from tests.experiments.collection import write_collection
from tests.test_robustness import tiny_run


def draw_nothing(workdir):
    return workdir / "report.html"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_collection(folder)
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Without a page, which takes seconds to draw."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asdproto.results.page.write_report", draw_nothing)
        assert cli.main(tiny_run.command(data, folder)) == 0
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports take seconds to draw; tests of what is not drawn go without."""
    monkeypatch.setattr("asdproto.results.page.write_report", draw_nothing)
