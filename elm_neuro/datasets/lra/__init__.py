"""Long Range Arena: the published files, and made-up ones of the same kinds."""
