"""What is there for CPUs alone; `tuning` switches it."""
