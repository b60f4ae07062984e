"""The folder of jobs, and what is served beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.service.gallery import CALIBRATION, GALLERY, write_encoder
from tests.service.jobs.helpers import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of jobs with data and an encoder in it."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    write_encoder(jobs / "encoder")
    write(jobs / "data" / "items.csv", GALLERY)
    write(jobs / "data" / "known.csv", [row for row in CALIBRATION if row[1]])
    write(jobs / "data" / "unknown.csv", [row for row in CALIBRATION if not row[1]])
    return jobs


@pytest.fixture
def link(collection: Path, tmp_path: Path) -> Path:
    """What is served: a link to a copy of the collection."""
    shutil.copytree(collection, tmp_path / "home")
    (tmp_path / "current").symlink_to(tmp_path / "home")
    return tmp_path / "current"
