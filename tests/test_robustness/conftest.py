"""One tiny collection and one tiny run of it, which tests damage copies of."""

import pytest

from asdproto import cli
from tests.experiments.collection import write_collection
from tests.test_robustness import tiny_run


@pytest.fixture(scope="module", autouse=True)
def _encoders_as_of_the_run(one_block):
    """What was trained with an encoder of one block is scored with one."""


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
        patch.setattr("asdproto.results.page.write_report", lambda run: run / "report.html")
        patch.setattr("asdproto.systems.prototype.ResNet", tiny_run.encoder)
        assert cli.main(tiny_run.command(data, folder)) == 0
    return folder
