"""What one does with a finished network: load it, sample, encode, edit."""
