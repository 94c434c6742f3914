"""Training and evaluation on recordings in SHD's format."""
