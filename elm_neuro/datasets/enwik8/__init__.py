"""The first 10^8 bytes of the English Wikipedia, for language models of bytes."""
