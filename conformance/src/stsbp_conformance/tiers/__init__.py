"""The eight tiers; each module holds its checks as `CHECKS` and says in its first lines what it proves."""
