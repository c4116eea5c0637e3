"""Transfer from labelled clients to an unlabelled one."""
