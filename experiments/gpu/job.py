"""`python -m convrec_r1`, and at its end the peak memory of the GPU into the file $STATISTICS."""

import atexit
import json
import os
import resource
from pathlib import Path


def save() -> None:
    import torch

    peak: dict[str, float] = {"ram_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    if torch.cuda.is_available():
        peak["gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        peak["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    Path(os.environ["STATISTICS"]).write_text(json.dumps(peak))


if __name__ == "__main__":
    atexit.register(save)
    from convrec_r1.cli import main

    main()
