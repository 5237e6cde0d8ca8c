"""Runs: from a configuration to records, tables and a report. The order of reading: configuration, plan, run."""
