"""Transforms of events and rasters."""
