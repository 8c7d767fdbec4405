"""What a run reports: live progress, metrics on disk, and what is known of the chips."""
