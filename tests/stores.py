"""Feature stores of arrays that a test has made."""

from asdproto.data.store import Row, open_store, save_store
from asdproto.files import checksum


def write_store(folder, features, clips, *, settings, dtype="float16"):
    """The store of arrays ``[frames, columns]``, one for each clip; their checksums are stamps."""
    blocks = [array.astype(dtype) for array in features]
    sums = [checksum(block) for block in blocks]
    rows = [
        Row(clip, len(block), own, (0, own))
        for clip, block, own in zip(clips, blocks, sums, strict=True)
    ]
    folder.mkdir(parents=True)
    columns = blocks[0].shape[1]
    save_store(folder, rows, blocks, settings=settings, columns=columns, dtype=dtype)
    return open_store(folder)
