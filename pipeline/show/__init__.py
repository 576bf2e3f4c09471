"""What people see: tables on stdout, a bar on stderr, the log."""
