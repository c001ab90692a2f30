"""Frontends, intermediate representation, exporters, driver and command line of Secateur."""
