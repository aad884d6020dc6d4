"""Training of one stage: the loop, the compiled update, the roles, the profiler."""
