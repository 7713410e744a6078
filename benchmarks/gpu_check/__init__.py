"""``make gpu-check``: everything that only a GPU can show, in one command, where one is at hand."""
