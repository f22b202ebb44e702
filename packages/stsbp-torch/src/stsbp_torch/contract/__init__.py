"""The contract's arithmetic on tensors."""
