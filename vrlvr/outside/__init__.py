"""What strangers wrote: videos and archives, read in child processes with limits, and never trusted."""
