"""Bulk extraction: the output holds every row of a source exactly once, and an audit proves it.

source/   what is read: discovery, planning from footers, readers of Parquet, JSON lines, CSV, Delta and Iceberg
output/   what is written: units and their ledger, layouts, redaction, audit, report, adding to a table
run/      the work: workers on Ray Data, one unit at a time, progress, an estimate beforehand

Imports go one way: run -> output -> source. command.py and options.py are the command line over all three.
"""
