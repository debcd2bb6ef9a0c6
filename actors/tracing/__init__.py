"""OpenTelemetry traces; nothing of it is imported by a process that does not trace."""
