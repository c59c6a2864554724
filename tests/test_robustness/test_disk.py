"""Full disks and folders that may not be written: one line that names the file, nothing lost."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from asdproto import cli
from asdproto.files import append, write_atomically
from tests.test_robustness import tiny_run
from tests.test_robustness.test_run_files import contents, fails

pytestmark = [
    pytest.mark.slow,
    # Where a write fails, those beside it end without anybody to tell.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FULL = "No space left on device"
BLOCK = 4096


@pytest.fixture
def disk(make_disk):
    """A disk of 4 MB."""
    return make_disk("4m")


def fill(disk: Path, free: int) -> None:
    """Leaves so many bytes."""
    (disk / "fill").unlink(missing_ok=True)
    status = os.statvfs(disk)
    (disk / "fill").write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - free)))


def test_training_on_a_full_disk(disk, data, trained, no_pictures, capsys):
    """In features of both kinds, in a first checkpoint, in a later one; with room it goes on."""
    command = tiny_run.command(data, disk / "run", "--save-seconds", "0")
    summary = sum(path.stat().st_size for path in (trained / "summary").iterdir()) // 1000
    steps = (0, "features"), (150, "summary"), (2 * summary + 10, "checkpoints/pretrain")
    for free, at in (*steps, (300, "checkpoints")):
        fill(disk, free * 1000)
        said = fails(capsys, *command)
        assert said.startswith(f"error: {disk / 'run' / at}")
        assert FULL in said or "Make room" in said
    assert [path for path in (disk / "run/checkpoints").glob("*/*") if path.name.isdigit()]
    (disk / "fill").unlink()
    assert cli.main(command) == 0, capsys.readouterr().err
    assert not [path for path in disk.rglob("*") if "tmp" in path.name]
    assert contents(disk / "run" / "scores") == contents(trained / "scores")


def test_scores_and_report_on_a_full_disk(disk, data, trained, capsys):
    """Figures are shown before the report is written."""
    run = shutil.copytree(trained, disk / "run")
    fill(disk, 0)
    assert cli.main(tiny_run.command(data, run)) == 1
    shown = capsys.readouterr()
    assert "spectral-knn" in shown.out
    assert f"error: {run / 'report.html'}: {FULL}" in shown.err
    shutil.rmtree(run / "scores")
    (run / "results.json").unlink()
    fill(disk, 20_000)
    said = fails(capsys, *tiny_run.command(data, run))
    assert said.startswith(f"error: {run / 'scores'}")
    assert FULL in said


def test_a_limit_on_the_size_of_files(tmp_path):
    """Of the process: said with the file, though there is room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, before[1]))
    try:
        for write in (
            lambda path: append(path, "x" * 2 * BLOCK),
            lambda path: write_atomically(path, bytes(2 * BLOCK)),
        ):
            with pytest.raises(OSError, match="File too large") as caught:
                write(tmp_path / "file")
            assert caught.value.filename == str(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_folders_that_may_not_be_written(nobody, open_folder, data, trained, capsys):
    """As another user than root, who may write anywhere."""
    run = shutil.copytree(trained, open_folder / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "features": str(run / "features")}))
    for path in (open_folder, *open_folder.rglob("*")):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    readable = shutil.copytree(data, open_folder / "data")
    for path in (readable, *readable.rglob("*")):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    clip = next(readable.rglob("*.wav"))
    with nobody():
        assert cli.main(["score", str(run), str(clip)]) == 0  # reading is enough
        assert clip.name in capsys.readouterr().out
        for command, file in (
            (tiny_run.command(readable, open_folder / "new"), open_folder / "new"),
            (tiny_run.command(readable, run), run / "report.html"),
            (["rescore", run, run / "again", "score.kind=knn"], run / "again"),
            (["score", run, clip, "--csv", run / "scores.csv"], run / "scores.csv"),
        ):
            assert f"error: {file}" in fails(capsys, *command)
