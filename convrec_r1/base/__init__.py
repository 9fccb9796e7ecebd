"""What every room stands on: errors, files, options, plug-ins, processes, progress, logs. Knows no other room."""
