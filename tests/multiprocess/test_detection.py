"""Which processes join others, and what those read that do not find them."""

import jax
import pytest

from asdproto.config import ConfigError
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


def test_a_plain_machine_runs_alone_without_a_word():
    with joined():
        assert alone(lambda: 3) == 3
        agree_on({"seeds": [0]})


@pytest.mark.parametrize(
    "hint",
    [{"SLURM_NTASKS": "2"}, {"JOB_COMPLETION_INDEX": "0"}, {"OMPI_COMM_WORLD_SIZE": "2"}],
)
def test_a_lone_process_of_a_cluster_says_so_in_one_line(monkeypatch, hint):
    for name, value in hint.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.warns(
            AloneWarning, match=f"{name}={value} speaks of several.*--coordinator"
        ) as seen,
        joined(),
    ):
        pass
    assert "\n" not in str(seen[0].message)


@pytest.mark.parametrize("hint", [{"SLURM_NTASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}])
def test_a_cluster_of_one_is_no_hint(monkeypatch, hint):
    for name, value in hint.items():
        monkeypatch.setenv(name, value)
    with joined():
        pass


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
