"""Encoders, as pure flax.linen modules."""
