import dataclasses
import json
import os
import stat

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.data.store import open_store, write_store
from asdproto.errors import StoreError
from asdproto.features import FeatureSettings

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
    open_store(tmp_path / "s")
    with pytest.raises(StoreError, match=f"damage in 1 of 3 clips: a/ü,{index}.wav;"):
        open_store(tmp_path / "s", verify=True)


def test_damage_to_the_other_files_shows_at_once(tmp_path):
    root = tmp_path / "s"
    write_store(root, arrays(), clips(3), settings={})
    files = {file: file.read_bytes() for file in root.iterdir()}

    def spoil(name, content):
        for file, whole in files.items():
            file.write_bytes(whole)
        (root / name).write_bytes(content)

    table, array = files[root / "table.csv"], files[root / "features.npy"]
    spoil("table.csv", table.replace(b"normal", b"anomal", 1))
    with pytest.raises(StoreError, match="a table that was changed"):
        open_store(root)
    spoil("features.npy", array[:-10])
    with pytest.raises(StoreError, match="expected a whole store"):
        open_store(root)
    spoil("manifest.json", files[root / "manifest.json"][:50])
    with pytest.raises(StoreError, match="expected a whole store"):
        open_store(root)
    manifest = json.loads(files[root / "manifest.json"])
    spoil("manifest.json", json.dumps({**manifest, "format": 99}).encode())
    with pytest.raises(StoreError, match="found format 99; expected format 1"):
        open_store(root)
    spoil("manifest.json", json.dumps({**manifest, "shape": [3, 9, 7]}).encode())
    with pytest.raises(StoreError, match=r"expected float16 \(3, 9, 7\)"):
        open_store(root)
    np.save(root / "features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="whole store"):
        open_store(root)


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
