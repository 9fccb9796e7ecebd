"""`python -m job MODULE:FUNCTION ARGUMENTS`: a function of a test file in a process of its own; ARGUMENTS is a JSON list."""

import importlib
import json
import sys

if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
