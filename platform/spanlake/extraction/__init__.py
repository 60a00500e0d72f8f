"""Bulk extraction: every row of a Parquet source stands exactly once in the output, and an audit proves it.

plan.py cuts the source into units; ledger.py keeps what was asked and which units are committed; unit.py reads,
extracts and commits one unit; pipeline.py runs units on Ray Data; audit.py and show.py read the output.
"""
