"""The machine that a process runs on: arguments, devices, code, signals, terminal."""
