"""Use of finished networks: loading, sampling, encoding, editing."""
