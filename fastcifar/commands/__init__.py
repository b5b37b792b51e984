"""One module a command; each has Args and run(args)."""
