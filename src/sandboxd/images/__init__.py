"""What is installed stays: a sandbox's root file system becomes a layer on its base, pushed, proven and kept."""
