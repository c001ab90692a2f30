"""Schedules: dense CPU kernels as TIR templates parametrised by `Target`."""
