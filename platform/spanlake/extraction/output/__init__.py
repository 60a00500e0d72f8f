"""Writes the output of an extraction and reads it back. ledger.py describes an output directory."""
