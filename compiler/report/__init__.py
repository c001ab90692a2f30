"""What a run did, for people: numbers, the tables of layers and of weights, and a page of the former."""

from compiler.report.layers import Column, Row, layer_table
from compiler.report.numbers import count, size
from compiler.report.page import prune_page
from compiler.report.weights import CHANGES, ZEROS, change_rows, zero_rows

__all__ = [
    "CHANGES",
    "ZEROS",
    "Column",
    "Row",
    "change_rows",
    "count",
    "layer_table",
    "prune_page",
    "size",
    "zero_rows",
]
