"""The benchmark harness: contenders in turns on the same weights, checked against float64, as rows in JSON."""
