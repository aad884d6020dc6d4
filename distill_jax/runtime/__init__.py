"""The runtime of every command: processes, devices, files, logs, and the command line."""
