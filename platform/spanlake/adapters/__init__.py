"""Spanlake inside other libraries: spaCy, Presidio, Haystack, LangChain, pandas, Polars and Spark.

Each module imports one library, which the extra of its name installs.
"""
