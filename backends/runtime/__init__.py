"""What runs a compiled model: the thread pool in C and the loader in Python."""
