"""Pure decisions of the bus: no sockets, clocks, files, threads or logs in here."""
