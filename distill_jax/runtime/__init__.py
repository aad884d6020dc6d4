"""Processes, devices, files and the terminal: what every command needs, and no method."""
