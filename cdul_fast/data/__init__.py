"""Photos in, labels out: sources, decoding, run directories."""
