"""The web interface: the same lab in a browser, on this machine only. It reads run folders and stores no state."""
