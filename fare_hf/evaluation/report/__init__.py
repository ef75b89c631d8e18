"""What was measured: rows, tables, intervals and plots."""
