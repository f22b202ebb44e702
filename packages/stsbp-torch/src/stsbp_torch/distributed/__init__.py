"""Processes that torch.distributed connects."""
