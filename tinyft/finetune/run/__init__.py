"""A run on disk: its folder, what is saved, how it is resumed."""
