"""Bulk extraction: every row of a source stands exactly once in the output, and an audit proves it.

plan.py cuts a source into units, with lines.py (JSON, CSV) and tables.py (Delta, Iceberg) for what is not plain
Parquet; ledger.py keeps what was asked and which units are committed; sources.py reads units, and texts.py finds the
text in them; unit.py extracts and commits one, in the form that layout.py and redaction.py give it; pipeline.py runs
units on Ray Data, and board.py knows which are in work; lease.py keeps a second driver out; publish.py adds a complete
output to a table; estimate.py judges a run beforehand; audit.py, show.py and report.py read the output.
"""
