"""Language models of bytes, whose state is carried from one stretch of a text to the next."""
