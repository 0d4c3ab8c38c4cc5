"""The part that decides: methods in, effects out. It does no I/O and imports nothing that can."""
