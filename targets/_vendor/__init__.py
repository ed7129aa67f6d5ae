"""Devices whose makers ship a Triton of their own, which replaces the package `triton`."""
