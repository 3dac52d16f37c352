"""The Record of one measurement, and its two text formats. Reading a log executes nothing.

record       the Record, and the declaration of each built-in quantity
jsonl        JSON lines
csv_format   CSV: rows under headers
reading      read_records, and what a line that was cut short means
"""

from geodiag.core.quantity import Panel, Quantity
from geodiag.records.csv_format import to_csv
from geodiag.records.jsonl import from_json, to_json
from geodiag.records.reading import read_records
from geodiag.records.record import BUILT_IN, Record, quantities, value_text

__all__ = [
    "BUILT_IN",
    "Panel",
    "Quantity",
    "Record",
    "from_json",
    "quantities",
    "read_records",
    "to_csv",
    "to_json",
    "value_text",
]
