"""What stands between the driver and its Ray actors: start-up, groups and pools, pulses, waits, deaths by name."""
