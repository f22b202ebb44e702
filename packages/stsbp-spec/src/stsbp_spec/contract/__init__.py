"""The rules of exact arithmetic: grids, sums, random numbers, elementary functions."""
