"""Bulk extraction: the output holds every row of a source exactly once, and an audit proves it.

source/   input: finds files, plans units from their footers, and reads Parquet, JSON lines, CSV, Delta and Iceberg
output/   output: units and their ledger, layouts, audit, report, adding to a table
run/      work: workers on Ray Data that process units, progress, an estimate beforehand

Imports go one way: run -> output -> source. command.py and options.py are the command line of all three.
"""
