"""Runs an extraction: execute.py finds the pending units of an output, pipeline.py processes them on Ray Data."""
