"""The part that decides: methods in, effects out, the time is an argument. It does no I/O and imports nothing that can."""
