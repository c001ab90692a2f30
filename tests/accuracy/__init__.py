"""What every criterion costs in accuracy on four small networks: `make accuracy` writes docs/accuracy.md."""
