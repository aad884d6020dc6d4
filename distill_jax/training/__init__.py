"""Phases become a trained state: the loop, the compiled update, roles, the profiler."""
