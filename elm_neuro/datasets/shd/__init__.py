"""Recordings in SHD's format, SHD-Adding, and synthetic spoken digits."""
