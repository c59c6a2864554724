"""Which processes join others, what those read that do not find them, and what must agree."""

import jax
import pytest

from asdproto import __version__
from asdproto.config import ConfigError
from asdproto.errors import DataError
from asdproto.training import processes
from asdproto.training.processes import AloneWarning, agree_on, alone, joined


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """A machine of which nothing says that there are others, and where JAX finds none."""
    for name, own in processes._HINTS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(own, raising=False) if own else None

    def nothing(*options, **limits):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)


def test_a_plain_machine_and_a_cluster_of_one_run_alone_without_a_word(monkeypatch):
    with joined():
        pass
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    with joined():
        assert alone(lambda: 3) == 3
        agree_on({"seeds": [0]})


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_NTASKS", "2"), ("JOB_COMPLETION_INDEX", "0")],
)
def test_a_lone_process_of_a_cluster_says_so_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with (
        pytest.warns(
            AloneWarning, match=f"{name}={value} speaks of several.*--coordinator"
        ) as seen,
        joined(),
    ):
        pass
    assert "\n" not in str(seen[0].message)


@pytest.mark.parametrize(
    "hint",
    [
        {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"JAX_COORDINATOR_ADDRESS": "a:1"},
    ],
)
def test_one_of_several_is_told_the_variable_and_the_options(monkeypatch, hint):
    for name, value in hint.items():
        monkeypatch.setenv(name, value)
    remedy = f"{next(iter(hint))}=.*--processes N --process-id I"
    with pytest.raises(ConfigError, match=remedy), joined():
        pass
    with joined(processes=1):  # nor are those held up that want no others
        pass


def test_options_go_together():
    with pytest.raises(ConfigError, match="go together"), joined("localhost:1234"):
        pass


class Second:
    """Process 1 of a run whose process 0 has said what it is told here."""

    index = 1

    def __init__(self, *told):
        self.told, self.workdir, self.met = list(told), None, 0

    def tell(self, value):
        return self.told.pop(0)

    def meet(self):
        self.met += 1


def test_what_differs_from_process_0_is_named_with_both_values(monkeypatch, tmp_path):
    facts = {"seeds": [0], "system": {"width": 4}}
    same = Second(facts)
    monkeypatch.setattr(processes, "_peers", same)
    agree_on(facts)
    assert same.met == 1
    monkeypatch.setattr(processes, "_peers", Second({**facts, "system": {"width": 8}}))
    with pytest.raises(DataError, match=r"^system.width: found 4; expected 8, as in process 0. "):
        agree_on(facts)
    # With a work folder, what it holds and the software belong to the facts.
    (tmp_path / "checkpoints" / "pretrain" / "7").mkdir(parents=True)
    (tmp_path / processes._TOKEN).write_text("written")
    newest = {"newest checkpoint": {"pretrain": 5}}
    software = {"asdproto version": __version__, "jax version": jax.__version__}
    theirs = Second(["written", "there"], {**facts, **newest, **software})
    monkeypatch.setattr(processes, "_peers", theirs)
    with pytest.raises(DataError, match=r"^newest checkpoint.pretrain: found 7; expected 5, as in"):
        agree_on(facts, tmp_path)


def test_a_work_folder_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_peers", Second(["written", "/data/run"]))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    with pytest.raises(DataError, match=r"0 writes there; .* process 0 calls /data/run"):
        agree_on({}, tmp_path)
