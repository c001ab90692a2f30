"""Small architectures of every family that pruning must understand, one file a family; see `entry.Entry`."""
