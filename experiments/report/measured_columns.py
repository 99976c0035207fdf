"""Gather the columns of tables that measure something of their own."""

from __future__ import annotations

from experiments.report.customize_columns import CUSTOMIZE_COLUMNS, CUSTOMIZE_SPREADS
from experiments.report.scan_columns import SCAN_COLUMNS
from experiments.report.size_columns import SIZE_COLUMNS, SIZE_SPREADS

MEASURED_COLUMNS = (*SCAN_COLUMNS, *SIZE_COLUMNS, *CUSTOMIZE_COLUMNS)
MEASURED_FIELDS = tuple(name for name, *_ in MEASURED_COLUMNS)
MEASURED_SPREADS = (*CUSTOMIZE_SPREADS, *SIZE_SPREADS)  # of those whose spread over the seeds is shown
