"""A FAISS index in a file that processes can share: mapped, its vectors at addresses that processors like.

FAISS writes vectors right behind headers of odd length. Mapped like that, matrix products over them are ten times
slower (numpy copies the unaligned matrix first) and graph searches a tenth. Zeros in front of the index, as many as it
takes, put them on a cache line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.engines.native_faiss import faiss

CACHE_LINE = 64


def write(index: Any) -> tuple[bytes, int]:
    """The file's content, and how many zeros stand before the index in it."""
    content: NDArray[np.uint8] = faiss.serialize_index(index)
    again = _mapped(content)  # keeps alive what `flat` is a part of
    flat = flat_part(again)
    offset = 0 if flat is None else int(flat.get_xb()) - content.ctypes.data
    padding = -offset % CACHE_LINE if 0 <= offset < len(content) else 0
    return bytes(padding) + content.tobytes(), padding


def read(file: bytes | Path, padding: int) -> Any:
    """The index behind so many zeros; a `Path` is mapped, unless its vectors would lie badly. Raises RuntimeError."""
    if isinstance(file, Path):
        index = _mapped(np.memmap(file, np.uint8, "r")[padding:])
        flat = flat_part(index)
        if flat is None or int(flat.get_xb()) % np.dtype(np.float32).alignment == 0:
            return index
        file = file.read_bytes()  # of a version that wrote no zeros
    return faiss.deserialize_index(np.frombuffer(file, np.uint8)[padding:])


def _mapped(content: NDArray[np.uint8]) -> Any:
    """The index over bytes that stay where they are."""
    index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(content), len(content)))
    index.referenced_objects = [content]  # FAISS keeps only pointers into it
    return index


def flat_part(index: Any) -> Any | None:
    """The flat index in which an index holds whole vectors; None where it holds only codes of them, or nothing."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    elif isinstance(index, faiss.IndexRefineFlat):
        index = faiss.downcast_index(index.refine_index)
    return index if isinstance(index, faiss.IndexFlat) and index.ntotal else None


def flat_vectors(index: Any) -> NDArray[np.float32]:
    """The whole vectors (size, d) that an index holds, where FAISS keeps them, without a copy."""
    flat = flat_part(index)
    assert flat is not None
    vectors: NDArray[np.float32] = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return vectors
