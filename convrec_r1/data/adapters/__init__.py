"""One module for each form in which data is published; each has a plain `load(path, *, catalog_path) -> Dataset`."""
