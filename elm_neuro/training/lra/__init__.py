"""Training and evaluation on Long Range Arena."""
