"""What a run did, for people: numbers, the table of layers, and a page of it."""

from compiler.report.layers import Column, Row, layer_table
from compiler.report.numbers import count, size
from compiler.report.page import prune_page

__all__ = ["Column", "Row", "count", "layer_table", "prune_page", "size"]
