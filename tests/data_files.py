"""What tests of data files share: the real samples, and small files."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the research samples in ../shared/data, which are not in the project"
)


def write_rows(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_catalog(folder: Path, name: str = "catalog.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("title,year\nHeat,1995\nAlien,1979\nJumanji,2017\nUlysses,\n", encoding="utf-8")
    return path
