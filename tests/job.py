"""Run a function of a test file: `python -m job MODULE:FUNCTION ARGUMENTS`, with ARGUMENTS as a JSON list."""

import importlib
import json
import sys

if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
