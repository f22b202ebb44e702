"""The eight tiers. Each module has its checks in `CHECKS`, and its first lines say what it proves."""
