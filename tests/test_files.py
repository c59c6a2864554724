import json

import numpy as np
import pytest

from asdproto.errors import DataError, StoreError
from asdproto.files import read_arrays, read_json, write_arrays, write_atomically

WHOLE = json.dumps({"seed": 1, "none": None, "classes": [["fan", "00"]]}).encode()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not json"),
        (WHOLE[:-9], "not json"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not json"),
        (b"[" * 100_000, "not json"),
        (b"[1, 2]", "a json list"),
        (b"null", "a json NoneType"),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, found):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        read_json(path, remedy="Train it again.", error=StoreError)
    assert str(caught.value).startswith(f"{path}: found ")
    assert found in caught.value.found
    assert str(caught.value).endswith("expected a json object. Train it again.")
    assert "\n" not in str(caught.value)


def test_json_comes_back_as_it_was(tmp_path):
    write_atomically(tmp_path / "config.json", WHOLE)
    assert read_json(tmp_path / "config.json", remedy="") == json.loads(WHOLE)


@pytest.mark.parametrize("read", [read_json, read_arrays])
def test_what_is_no_file_is_said(tmp_path, read):
    with pytest.raises(DataError, match=r"nowhere: found no such file; .* Look elsewhere\."):
        read(tmp_path / "nowhere", remedy="Look elsewhere.")
    with pytest.raises(DataError, match="found Is a directory"):
        read(tmp_path, remedy="")


def test_every_flipped_byte_of_an_array_file_is_noticed(tmp_path):
    arrays = {"mean": np.arange(3.0), "names": np.array(["a", "b"])}
    path = tmp_path / "standardization.npz"
    write_arrays(path, arrays)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x20
        path.write_bytes(damaged)
        try:
            found = read_arrays(path, tuple(arrays), remedy="")
        except DataError:
            refused += 1
            continue
        # Dates and permissions may differ, numbers may not.
        for name, expected in arrays.items():
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype == expected.dtype
    assert refused > len(whole) / 2


def test_other_array_files_are_refused(tmp_path):
    path = tmp_path / "embeddings.npz"
    np.savez(path, train=np.array([{}], object))
    pickled = path.read_bytes()
    write_arrays(path, {"train": np.zeros((2, 3))})
    whole = path.read_bytes()
    for content, found in (
        (b"", "damage"),
        (whole[: len(whole) // 2], "damage"),
        (b"PK", "damage"),
        (pickled, "damage .*pickle"),
        (whole, "no array test"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"embeddings.npz: found {found}"):
            read_arrays(path, ("train", "test"), remedy="Score again.")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match="damage"):
        read_arrays(tmp_path / "x.npy", remedy="")
