"""What is wrong with a machine, or between two workers, before a transfer shows it: ``kvferry doctor``."""
