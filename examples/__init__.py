"""Code of one's own beside the package, one file for each kind; see docs/extending.md."""
