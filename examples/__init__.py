"""Examples of your own dataset, network, method and teacher format; see docs/extending.md."""
