"""The Record of one measurement, and its two text formats. Reading a log executes nothing.

record       the Record, and the declaration of each built-in quantity
jsonl        JSON lines
csv_format   CSV: rows under headers
parts        the ratios of parts of a step, by name
reading      read_records, and what a line that was cut short means
header       what a log says of a run before its records
display      the last records as a table, for a notebook
runs         read_runs, to_pandas, to_polars
"""

from geodiag.core.quantity import Panel, Quantity
from geodiag.records.csv_format import to_csv
from geodiag.records.header import Header, new_run
from geodiag.records.jsonl import from_json, to_json
from geodiag.records.parts import with_parts
from geodiag.records.reading import read_records
from geodiag.records.record import BUILT_IN, EDGE, RATES, Record, quantities, value_text
from geodiag.records.runs import Run, read_runs, to_pandas, to_polars

__all__ = [
    "BUILT_IN",
    "EDGE",
    "RATES",
    "Header",
    "Panel",
    "Quantity",
    "Record",
    "Run",
    "from_json",
    "new_run",
    "quantities",
    "read_records",
    "read_runs",
    "to_csv",
    "to_json",
    "to_pandas",
    "to_polars",
    "value_text",
    "with_parts",
]
