import dataclasses
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.data.store import FeatureStore, open_store, overlong, write_store
from asdproto.errors import StoreError
from asdproto.features import FeatureSettings
from asdproto.files import write_atomically

SETTINGS = FeatureSettings(n_mels=8)


def clips(number):
    return [
        Clip(f"a/ü,{i}.wav", "fan", "00", "source", "train", "normal", f"v_{i}")
        for i in range(number)
    ]


def arrays(lengths=(5, 9, 1), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(-40, 20, size=(n, 8)).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path, dtype):
    written = arrays()
    store = write_store(tmp_path / "s", written, clips(3), settings=SETTINGS, dtype=dtype)
    again = open_store(tmp_path / "s", expect=SETTINGS, verify=True)
    for found in (store, again):
        assert found.clips == clips(3)
        assert len(found) == 3
        np.testing.assert_array_equal(found.frames, [5, 9, 1])
        assert found.frames.dtype == np.int32
        assert found.features.shape == (3, 9, 8)
        assert found.features.dtype == dtype
        assert isinstance(found.features, np.memmap)
        assert found.settings == dataclasses.asdict(SETTINGS)
        for index, array in enumerate(written):
            np.testing.assert_array_equal(found.read(index), array.astype(dtype))
            assert found.read(index).dtype == np.float32
            assert not found.features[index, len(array) :].any()
        with pytest.raises(ValueError, match="read-only"):
            found.features[0, 0, 0] = 1


def test_one_array_with_counts_of_frames(tmp_path):
    block = np.random.default_rng(1).normal(size=(3, 6, 8))
    store = write_store(
        tmp_path / "s", block, clips(3), frames=[6, 2, 4], settings={"x": 1}, dtype="float32"
    )
    np.testing.assert_array_equal(store.read(1), block[1, :2].astype(np.float32))
    assert not store.features[1, 2:].any()
    assert open_store(tmp_path / "s", expect={"x": 1}).settings == {"x": 1}


def test_permissions_are_those_of_any_other_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    write_store(tmp_path / "s", arrays(), clips(3), settings={})
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == stat.S_IMODE(folder.stat().st_mode)
    for file in (tmp_path / "s").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_other_settings_are_refused_and_the_difference_named(tmp_path):
    write_store(tmp_path / "s", arrays(), clips(3), settings=SETTINGS)
    other = dataclasses.replace(SETTINGS, scale="mel", hop_length=256)
    with pytest.raises(StoreError, match="other settings") as caught:
        open_store(tmp_path / "s", expect=other)
    assert "hop_length is 512 in the store, 256 asked for" in caught.value.found
    assert "scale is 'inverted' in the store, 'mel' asked for" in caught.value.found
    assert "n_mels" not in caught.value.found
    assert "delete this one" in caught.value.remedy
    with pytest.raises(StoreError, match="n_mels is 8 in the store, nothing asked for"):
        open_store(tmp_path / "s", expect={})


@pytest.mark.parametrize("index", [0, 2])
def test_verify_names_the_damaged_clip(tmp_path, index):
    store = write_store(tmp_path / "s", arrays(), clips(3), settings={})
    offset = store.features.offset + index * 9 * 8 * 2
    with open(tmp_path / "s/features.npy", "r+b") as stream:
        stream.seek(offset + 3)
        byte = stream.read(1)
        stream.seek(offset + 3)
        stream.write(bytes([byte[0] ^ 1]))
    assert len(open_store(tmp_path / "s", verify=False)) == 3
    with pytest.raises(StoreError, match=f"damage in 1 of 3 clips: a/ü,{index}.wav;"):
        open_store(tmp_path / "s")


BINARY = bytes(range(256)) * 40


def change(**fields):
    """The manifest with other fields, and a checksum that fits them."""

    def changed(content):
        manifest = {**json.loads(content), **fields}
        del manifest["crc32"]
        return json.dumps(manifest).encode()

    return changed


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("table.csv", lambda b: b.replace(b"normal", b"anomal", 1), "a table that was changed"),
        ("table.csv", lambda b: b"", "a table that was changed"),
        ("table.csv", lambda b: b[:-9], "a table that was changed"),
        ("table.csv", lambda b: BINARY, "a table that was changed"),
        ("table.csv", None, "No such file"),
        ("features.npy", lambda b: b[:-10], "whole features"),
        ("features.npy", lambda b: b[:30], "whole features"),
        ("features.npy", lambda b: b"", "whole features"),
        ("features.npy", lambda b: BINARY, "whole features"),
        ("features.npy", lambda b: b"PK\3\4" + b[4:], "whole features"),
        ("features.npy", lambda b: b.replace(b"False", b"True "), "damage in 3 of 3 clips"),
        ("features.npy", lambda b: b.replace(b"(3, 9, 8)", b"(9, 3, 8)"), r"float16 \(9, 3, 8\)"),
        ("features.npy", lambda b: b[:-1] + bytes([b[-1] ^ 64]), None),  # padding, never read
        ("features.npy", lambda b: b[:-8300] + BINARY[:32] + b[-8268:], "whole features"),
        ("features.npy", None, "No such file"),
        ("manifest.json", lambda b: b[:50], "text that is not json"),
        ("manifest.json", lambda b: b"", "text that is not json"),
        ("manifest.json", lambda b: BINARY, "text that is not json"),
        ("manifest.json", lambda b: b"[" * 100_000, "text that is not json"),
        ("manifest.json", lambda b: b"[]", "a json list"),
        ("manifest.json", lambda b: b"{}", "KeyError"),
        ("manifest.json", lambda b: b.replace(b"float16", b"float32"), "a manifest that was ch"),
        ("manifest.json", change(format=99), "found format 99; expected format 1"),
        ("manifest.json", change(shape=[3, 9, 7]), r"expected float16 \(3, 9, 7\)"),
        ("manifest.json", change(shape=7), "TypeError"),
        ("manifest.json", change(dtype=5), "expected 5"),
    ],
)
def test_damage_is_named_in_one_line_with_its_file(tmp_path, name, damage, words):
    root = tmp_path / "s"
    write_store(root, arrays(), clips(3), settings={})
    file = root / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    if words is None:
        open_store(root)
        return
    with pytest.raises(StoreError, match=words) as caught:
        open_store(root)
    disagree = words.startswith("expected")  # one of two files is wrong, and the array is named
    assert caught.value.file == str(root / "features.npy" if disagree else file)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert "extract it again" in caught.value.remedy


def test_pickles_are_refused(tmp_path):
    root = tmp_path / "s"
    write_store(root, arrays(), clips(3), settings={})
    np.save(root / "features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="whole features"):
        open_store(root)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.5])
def test_other_values_are_never_used(tmp_path, value):
    store = write_store(tmp_path / "s", arrays(), clips(3), settings={})
    open_store(tmp_path / "s")
    array = np.lib.format.open_memmap(store.root / "features.npy", mode="r+")
    array[1, 4:, 3] = value
    array.flush()
    del array
    with pytest.raises(StoreError, match="damage in 1 of 3 clips"):
        open_store(tmp_path / "s")


def test_a_store_is_verified_once_in_a_process(tmp_path, monkeypatch):
    write_store(tmp_path / "s", arrays(), clips(3), settings={})
    monkeypatch.setattr(FeatureStore, "verify", lambda self: pytest.fail("a second time"))
    assert open_store(tmp_path / "s").dtype == np.float16


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="found nothing"):
        open_store(tmp_path / "s")
    (tmp_path / "s").mkdir()
    with pytest.raises(StoreError, match="has not ended"):
        open_store(tmp_path / "s")


def test_arguments_that_cannot_be_stored(tmp_path):
    root = tmp_path / "s"
    with pytest.raises(StoreError, match="2 arrays and 3 clips"):
        write_store(root, arrays((5, 9)), clips(3), settings={})
    with pytest.raises(StoreError, match="no clips"):
        write_store(root, [], [], settings={})
    with pytest.raises(StoreError, match=r"a/ü,1\.wav: found features of shape \(9, 7\)"):
        write_store(root, [np.ones((9, 8)), np.ones((9, 7))], clips(2), settings={})
    with pytest.raises(StoreError, match="of which 10 frames count"):
        write_store(root, arrays((5,)), clips(1), frames=[10], settings={})
    with pytest.raises(StoreError, match=r"not finite as float16.*choose dtype float32"):
        write_store(root, [np.full((2, 8), 1e5)], clips(1), settings={})
    with pytest.raises(StoreError, match="not finite as float32"):
        write_store(root, [np.full((2, 8), np.nan)], clips(1), settings={}, dtype="float32")
    with pytest.raises(StoreError, match="'int8'; expected one of float16, float32"):
        write_store(root, arrays(), clips(3), settings={}, dtype="int8")
    assert list(tmp_path.iterdir()) == []  # nothing half-written stays
    write_store(root, arrays(), clips(3), settings={})
    before = (root / "features.npy").read_bytes()
    with pytest.raises(StoreError, match="something there already"):
        write_store(root, arrays(seed=1), clips(3), settings={})
    assert (root / "features.npy").read_bytes() == before


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk on fire"):
        write_store(tmp_path / "s", arrays(), clips(3), settings={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        ({}, []),
        ({"a": 10}, []),
        ({"a": 10, "b": 1}, []),
        ({**{str(i): 10 for i in range(9)}, "long": 1000}, ["long"]),
        ({**{str(i): 10 for i in range(9)}, "long": 50}, []),
        ({**{str(i): 10 for i in range(50)}, "a": 900, "b": 9000}, ["b", "a"]),
    ],
)
def test_clips_much_longer_than_the_others(frames, found):
    assert overlong(frames) == found
    kept = {name: count for name, count in frames.items() if name not in found}
    assert not kept or max(kept.values()) * len(kept) <= 4 * sum(kept.values())


def test_a_full_disk_is_said_with_file_and_missing_space(small_disk):
    with pytest.raises(OSError, match="No space left on device") as e:
        write_store(small_disk / "s", np.ones((8, 2000, 128)), clips(8), settings={})
    assert e.value.filename.endswith("features.npy")
    assert list(small_disk.iterdir()) == []
    write_store(small_disk / "s", np.ones((1, 1000, 128)), clips(1), settings={})


def test_a_limit_on_file_sizes_is_said(tmp_path):
    code = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from asdproto.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_atomically(Path(sys.argv[1]), bytes(5000))\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        write_atomically(tmp_path / "absent/file", b"x")
    assert caught.value.filename == str(tmp_path / "absent/file")  # not the temporary name
