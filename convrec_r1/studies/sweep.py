"""The end of a sweep: what became of each run, and the comparison of those that are complete."""

import sys
from pathlib import Path

from omegaconf import OmegaConf
from rich.table import Table

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import console
from convrec_r1.base.visible import visible
from convrec_r1.evaluate.config import EvalConfig
from convrec_r1.studies.compare import compare_runs
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.ledger import Cell, Ledger

FAULT = 1
WORDS = {0: "complete", 1: "failed", 2: "refused"}


def conclude(ledger: Ledger) -> int:
    """Show the cells, compare the complete ones into <study>/comparison/. Returns the worst exit status."""
    cells = ledger.cells()
    complete = [cell for cell in cells if cell.status == 0]
    _show(cells)
    if len(complete) > 1:
        _compare([cell.folder for cell in complete], ledger.sweep_dir / "comparison")
    if failed := len(cells) - len(complete):
        text = f"{failed} of {len(cells)} runs failed. The same command runs these again, and no other."
        print(text, file=sys.stderr)
    ledger.close()
    return max((cell.status if cell.status in WORDS else FAULT for cell in cells), default=0)


def _show(cells: list[Cell]) -> None:
    table = Table(title="Sweep", title_justify="left")
    for name in ("run", "", "time"):
        table.add_column(name, no_wrap=name != "run", overflow="fold", justify="right" if name == "time" else "left")
    for cell in cells:
        style = "" if cell.status == 0 else "bold red"
        word = "killed" if cell.status is None else WORDS.get(cell.status, "killed")
        table.add_row(cell.folder.name, word, f"{cell.seconds:.0f} s", style=style)
    console.print(table)
    for cell in cells:
        if cell.status != 0:
            why = cell.why or f"it ended without a word (signal {-(cell.status or 0)}); run.log tells how far it came."
            console.print(f"{cell.folder.name}: {visible(why)}", markup=False, highlight=False, soft_wrap=True)


def _compare(runs: list[Path], folder: Path) -> None:
    """With the options of the first run: they are the same for all of a sweep, unless it sweeps over them."""
    stored = OmegaConf.load(runs[0] / "config.yaml")
    evaluation = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvalConfig), stored.eval))
    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompareConfig), stored.compare))
    assert isinstance(evaluation, EvalConfig)
    assert isinstance(options, CompareConfig)
    try:
        compare_runs(runs, folder, options, level=evaluation.level, resamples=evaluation.resamples)
    except UserError as error:
        console.print(f"No comparison: {visible(str(error))}", markup=False, highlight=False, soft_wrap=True)
