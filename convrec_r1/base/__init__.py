"""The foundation of every other package: errors, files, options, plug-ins, processes, progress and logs."""
