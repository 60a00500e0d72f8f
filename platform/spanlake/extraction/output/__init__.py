"""What an extraction writes, and what reads it back. ledger.py says what an output directory is."""
