"""What an extraction reads. model.py has the terms; open.py finds files and opens readers for them."""
