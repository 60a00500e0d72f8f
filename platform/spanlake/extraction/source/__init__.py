"""Reads the source of an extraction. model.py has the terms; open.py finds files and opens readers for them."""
