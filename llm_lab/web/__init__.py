"""The web page: the same lab in a browser, on this machine only. It reads run folders and keeps no state of its own."""
