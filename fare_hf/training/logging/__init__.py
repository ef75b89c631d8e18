"""What a run says: before its first step, on its bar and in its log."""
