"""What every benchmark hands over: machines, timings, results, tables and pictures."""
