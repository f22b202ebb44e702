"""Processes that NCCL connects."""
