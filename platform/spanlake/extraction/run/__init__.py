"""How an extraction works: execute.py does what an output lacks, pipeline.py does it on Ray Data."""
