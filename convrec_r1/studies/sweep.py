"""The end of a sweep: the result of each run, and a comparison of the complete runs."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import console
from convrec_r1.base.tables import Column, Table
from convrec_r1.base.visible import visible
from convrec_r1.studies.compare import compare_runs
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.ledger import Cell, Ledger

_FAULT = 1
_WORDS = {0: "complete", 1: "failed", 2: "refused"}


def conclude(ledger: Ledger) -> int:
    """Print the result of each run and compare the complete runs in <study>/comparison/. Return the highest exit status."""
    cells = ledger.cells()
    complete = [cell for cell in cells if cell.status == 0]
    _show(cells)
    if len(complete) > 1:
        _compare([cell.folder for cell in complete], ledger.sweep_dir / "comparison")
    if failed := len(cells) - len(complete):
        print(f"{failed} of {len(cells)} runs failed. The same command runs only these again.", file=sys.stderr)
    ledger.close()
    return max((cell.status if cell.status in _WORDS else _FAULT for cell in cells), default=0)


def _show(cells: list[Cell]) -> None:
    columns = (Column("run"), Column("result", text=True), Column("time"))
    rows = [[cell.folder.name, _WORDS.get(cell.status, "killed"), f"{cell.seconds:.0f} s"] for cell in cells]  # pyright: ignore[reportCallIssue, reportArgumentType]
    console.print(Table(columns, rows).rich("Sweep", first_width=None))
    for cell in cells:
        if cell.status != 0:
            why = cell.why or f"no error message (signal {-(cell.status or 0)}); see run.log."
            console.print(f"{cell.folder.name}: {visible(why)}", markup=False, highlight=False, soft_wrap=True)


def _compare(runs: list[Path], folder: Path) -> None:
    """Compare the runs with the options of the first run."""
    stored = OmegaConf.load(runs[0] / "config.yaml")
    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompareConfig), stored.compare))
    assert isinstance(options, CompareConfig)
    try:
        compare_runs(runs, folder, options, level=float(stored.eval.level), resamples=int(stored.eval.resamples))
    except UserError as error:
        console.print(f"No comparison: {visible(str(error))}", markup=False, highlight=False, soft_wrap=True)
